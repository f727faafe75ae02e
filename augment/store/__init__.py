"""The SeparatedStore: each clip is separated once, and all trials read the result."""
