"""From embeddings to metrics with intervals: shallow classification, query by example, probes, tests."""
