"""Experiments on Ray: configuration, training, evaluation, sweeps, reports, MLflow and the command line."""
