"""The SeparatedStore: every clip is separated once, and all trials read the result."""
