"""Exact batch operations over all training workers: gathering with gradients, and batch statistics."""
