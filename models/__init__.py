"""Networks in plain PyTorch, usable from a notebook. They depend neither on Ray nor on any other folder."""
