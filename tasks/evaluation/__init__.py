"""Compute metrics with intervals from embeddings: shallow classification, query by example, probes, tests."""
