"""Encoders: the log-mel front-end, CNN14, the patch transformer, the heads, bundles, import, export and HEAR."""
