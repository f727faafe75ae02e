"""Training objectives and their evaluation: losses, data sets, metrics and the paper's claims."""
