"""Trials in one light process without Ray: log-mels lie ready in a store, and views are crops of them."""
