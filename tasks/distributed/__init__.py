"""Exact batch operations over all training workers: gathers with gradients, batch statistics."""
