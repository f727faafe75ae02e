"""The command-line interface `sepscene`."""
