"""What is learned and how it is evaluated: losses, data sets, metrics and the paper's claims."""
