"""A run from its data to its report: every stage in order, each of which looks for what it has made before it works."""
