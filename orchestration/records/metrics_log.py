"""The step metrics of a run: one JSON object per line in RUN/metrics.jsonl, written by the Train controller.

Progress on the terminal and MLflow are fed from this file. So training continues if MLflow is unavailable, and the
missing metrics can be sent later.
"""

import json
import logging
import time
from typing import Any

import ray.train

from sepscene.orchestration.records.files import append_lines, read_typed_or, write_text_atomically
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.run_folder import StageFolder

logger = logging.getLogger("sepscene")


class MetricsFile(ray.train.UserCallback):
    """Appends the steps that rank 0 reports to the run's metrics file; if the disk is full, they wait in memory."""

    def __init__(self, folder: StageFolder) -> None:
        self.folder = folder
        self.waiting: list[dict[str, Any]] = []
        self.configured = folder.run.experiment.exists()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by Ray Train after all workers have reported."""
        self._append(metrics[0].get("steps", []))
        if metrics[0].get("fatal"):
            try:
                write_text_atomically(self.folder.fatal, metrics[0]["fatal"])
            except OSError:
                raise RuntimeError(metrics[0]["fatal"]) from None  # ends the stage as well, with this text

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train after workers have failed; the next group continues from the newest checkpoint."""
        reason = "; ".join(f"worker {rank}: {type(error).__name__}" for rank, error in worker_exceptions.items())
        self._append([{"event": f"worker group failed ({reason}), restarting"}])

    def _append(self, records: list[dict[str, Any]]) -> None:
        run = self.folder.run
        if self.configured and not run.experiment.exists():
            raise RuntimeError(f"the run's folder {run.path} was deleted while it ran")  # ends the stage
        now = time.time()
        self.waiting += [{"seconds": now, **record} for record in records]
        try:
            append_metrics(self.folder, self.waiting)
            self.waiting = []
            collect_validations(self.folder)
        except OSError as error:  # an exception here would end the stage permanently
            logger.warning("%s cannot be written (%s); training continues", run.metrics, error)


def recover_metrics(folder: StageFolder, records: list[dict[str, float]]) -> None:
    """Append the steps of a checkpoint that the metrics file lacks because their report was lost with its workers."""
    steps = [record for record in read_metrics(folder.run.path) if record["stage"] == folder.name and "step" in record]
    known = {record["step"] for record in steps if "event" not in record and "validation_knn_map" not in record}
    append_metrics(folder, [record for record in records if record["step"] not in known])


def collect_validations(folder: StageFolder) -> None:
    """Move the records of validation tasks to the metrics file.

    The tasks may run on any machine, and appends from two machines to one shared file can overwrite each other. So only
    the process that writes the steps writes these records. If it is killed in between, a record is written twice.
    """
    for path in folder.written_validations():
        record = read_typed_or(path, dict[str, float | str], {})
        if record:
            append_metrics(folder, [record])
        path.unlink()


def append_metrics(folder: StageFolder, records: list[dict[str, Any]]) -> None:
    """Append records of a stage to its run's metrics file, each with the stage and the Unix time in seconds.

    Raises:
        OSError: if the write fails; the file is then unchanged.
    """
    now = time.time()
    lines = [json.dumps({"stage": folder.name, "seconds": now, **record}) for record in records]
    append_lines(folder.run.metrics, lines)
