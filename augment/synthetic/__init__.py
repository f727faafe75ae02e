"""Synthetic sound scenes with known sources, for the demo, tests and studies."""
