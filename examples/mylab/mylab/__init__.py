"""An example of a lab's own package; docs/extending.md builds it step by step."""
