"""Manifests of data sets (clips, labels and splits), their readers, and audits."""
