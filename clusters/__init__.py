"""Templates for clusters, and the code that reads, checks and fills them."""
