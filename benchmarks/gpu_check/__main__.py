"""`python -m benchmarks.gpu_check`."""

import typer

from benchmarks.gpu_check.check import main

typer.run(main)
