"""Networks that a notebook can use alone: plain PyTorch, which knows nothing of Ray or of any other folder."""
