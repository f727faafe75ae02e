"""The step metrics of a run: one JSON object a line in RUN/metrics.jsonl, written in the Train controller.

The file is the truth; the terminal's progress and MLflow follow it. So training goes on when MLflow is down, and
whatever it missed can be sent later.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import ray.train

from orchestration.results import read_metrics


class MetricsFile(ray.train.UserCallback):
    """Appends the steps that rank 0 reports to the run's metrics file."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by Ray Train when all workers have reported."""
        append_metrics(self.path, self.stage, metrics[0].get("steps", []))
        if metrics[0].get("fatal"):
            fatal_path(self.path.parent, self.stage).write_text(metrics[0]["fatal"])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train when workers failed; the next group continues from the newest checkpoint."""
        reason = "; ".join(f"worker {rank}: {type(error).__name__}" for rank, error in worker_exceptions.items())
        append_metrics(self.path, self.stage, [{"event": f"worker group failed ({reason}), restarting"}])


def fatal_path(run_dir: Path, stage: str) -> Path:
    """Where a stage's reason to stop for good is written down."""
    return run_dir / "checkpoints" / stage / "fatal"


def recover_metrics(path: Path, stage: str, records: list[dict[str, float]]) -> None:
    """Append those steps of a checkpoint that the metrics file lacks, because their report died with its workers."""
    known = {record["step"] for record in read_metrics(path.parent) if record["stage"] == stage and "step" in record}
    append_metrics(path, stage, [record for record in records if record["step"] not in known])


def append_metrics(path: Path, stage: str, records: list[dict[str, Any]]) -> None:
    """Append records to a metrics file, each with its stage and the time of day in seconds."""
    now = time.time()
    lines = [json.dumps({"stage": stage, "seconds": now, **record}) + "\n" for record in records]
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")  # a line torn by a full disk: it alone is lost
        file.write("".join(lines).encode())
