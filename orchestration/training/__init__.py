"""From rows to weights: the stream of views, and the training stages on Ray Train."""
