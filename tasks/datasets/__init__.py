"""Manifests: which clips a data set has, with their labels and splits, and what an audit finds in them."""
