"""From weights to metrics: embedding of clips and files, scores, comparison of runs."""
