"""Cluster descriptions for Ray's launchers, and what validates them."""
