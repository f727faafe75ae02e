"""The GPU check: see `benchmarks.gpu_check.check`."""
