"""Trials in one process without Ray, whose views are crops of stored log-mels."""
