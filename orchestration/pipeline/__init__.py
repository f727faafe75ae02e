"""A run from its data to its report: all stages in order. Each stage skips work that is already done."""
