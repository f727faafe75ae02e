"""Encoders: the log-mel front-end, CNN14 and the heads, folders of weights, import, export and HEAR."""
