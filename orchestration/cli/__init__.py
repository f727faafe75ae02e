"""The command `sepscene`: arguments in, one clear message out."""
