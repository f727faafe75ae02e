"""What a lab brings of its own: see docs/extending.md, which builds it step by step."""
