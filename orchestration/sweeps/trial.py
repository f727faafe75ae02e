"""The driver of one trial: a complete run inside a Tune trial, which reports its validations to Tune during training.

When a trial is started again, it continues from its newest checkpoint. All of its state is in its folder (`RunFolder`).
A failed trial runs again when its sweep is continued, one that a scheduler has stopped does not.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.tune

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.pipeline.encoders import encoders_of
from sepscene.orchestration.pipeline.evaluate_stage import evaluate_run
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.records.files import read_typed_or, write_text_atomically
from sepscene.orchestration.records.results import RunResults, Setting, read_metrics
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.repeating import repeat_in_background
from sepscene.orchestration.runtime.concurrency import gpus_of
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.terminal import Terminal
from sepscene.orchestration.training.stream import schedule_of

METRIC = "validation_knn_map"
PERCENT = "percent"
"""Percentage of its rows that a trial has trained on, which is comparable between different batch sizes."""

POLL_SECONDS = 1.0  # interval at which a trial reports to Tune, and touches its file in held/
STALE_SECONDS = 15.0
"""A trial whose file in held/ has not changed for this long is not running."""

Work = Callable[[Path, Experiment, str, dict[str, str]], RunResults]
"""The work of a trial, given its folder, experiment, tracking URI, and the tags of its MLflow run."""


def whole_run(run_dir: Path, experiment: Experiment, tracking_uri: str, tags: dict[str, str]) -> RunResults:
    """Train and evaluate one encoder; continues an earlier start of the same run."""
    configure_data(experiment.training.ordered)
    with Run.open(run_dir, experiment, tracking_uri, Terminal(quiet=True), resume=True, tags=tags) as run:
        note_steps(run_dir, experiment, len(run.manifests[0]))
        run.encoder(run.ladder())
        results = evaluate_run(run, encoders_of(run), {})
        run.tracker.tag("", {"status": "finished"})
    return results


def run_trial(
    config: dict[str, Any], folder: str, tracking_uri: str, tags: dict[str, str], work: Work = whole_run
) -> None:
    """The function that Tune runs for each trial.

    Args:
        config: "trial" with its "name", "experiment", the settings that tables show ("shown") and, if a searcher chose
            them, the "settings" to change in the experiment.
        folder: of the sweep.
    """
    trial = config["trial"]
    chosen = trial.get("settings", {})
    shown = trial["shown"]
    experiment = Experiment.model_validate_json(trial["experiment"]).changed(chosen)
    files = SweepFolder(Path(folder)).trial(trial["name"])
    run_dir = files.path
    if files.is_over:
        _report_ended_trial(run_dir)
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    facts = {"name": trial["name"], "settings": shown, "seed": experiment.seed, "chosen": chosen}
    _note(run_dir, {**facts, "gpus": gpus_of(experiment)})
    files.failure.unlink(missing_ok=True)
    tags = {**tags, "status": "running", "reason": ""}
    tags |= {f"sweep.{field}": _joined(value) for field, value in shown.items()}
    try:
        with _record_held_time(run_dir), _report_validations(run_dir) as reported:
            results = work(run_dir, experiment, tracking_uri, tags)
    except BaseException as error:
        write_text_atomically(files.failure, f"{type(error).__name__}: {error}")
        raise
    files.finished.touch()
    ray.tune.report({**_metrics(results), **reported})


def _report_ended_trial(run_dir: Path) -> None:
    """Report the validations and metrics of an ended trial again, for the scheduler of a new driver."""
    with _report_validations(run_dir) as reported:
        pass
    metrics = _metrics(RunResults.load(run_dir)) if RunFolder(run_dir).finished.exists() else {}
    ray.tune.report({**metrics, **reported})


def _metrics(results: RunResults) -> dict[str, float]:
    return {key: metric.value for key, metric in results.encoders[0].metrics.items()}


def _joined(value: Setting) -> str:
    """The value of a tag: e.g. S2+N for a combination, as in the tags of the run."""
    return "+".join(value) if isinstance(value, list | tuple) else str(value)


def _note(run_dir: Path, facts: dict[str, Any]) -> None:
    write_text_atomically(RunFolder(run_dir).trial, json.dumps({**_facts(run_dir), **facts}))


def _facts(run_dir: Path) -> dict[str, Any]:
    return read_typed_or(RunFolder(run_dir).trial, dict[str, Any], {})


@contextmanager
def _record_held_time(run_dir: Path) -> Iterator[None]:
    """While the block runs, record how long the trial has held its resources; the record survives a kill -9."""
    mark = RunFolder(run_dir).held_mark(time.time_ns())
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    try:
        with repeat_in_background(mark.touch, POLL_SECONDS, "held-time"):
            yield
    finally:
        mark.touch()


def held_seconds(run_dir: Path) -> float:
    """How long a trial has held its resources, in seconds, summed over all its starts."""
    return sum(max(0, mark.stat().st_mtime_ns - int(mark.name)) for mark in RunFolder(run_dir).held_marks()) / 1e9


def is_held(run_dir: Path) -> bool:
    """Whether a trial holds its resources now."""
    newest = max((mark.stat().st_mtime for mark in RunFolder(run_dir).held_marks()), default=0.0)
    return time.time() - newest < STALE_SECONDS


def note_steps(run_dir: Path, experiment: Experiment, clips: int) -> None:
    """Record the number of steps of the whole training, on this many clips."""
    steps = -(-schedule_of(experiment, clips).rows // experiment.training.global_batch)
    _note(run_dir, {"steps": steps})


@contextmanager
def _report_validations(run_dir: Path) -> Iterator[dict[str, Any]]:
    """While the block runs, report each validation in the metrics file to Tune, including earlier ones.

    Yields:
        The values reported last, which the final report of a trial repeats.
    """
    last: dict[str, Any] = {"name": run_dir.name}
    done = 0

    def report() -> None:
        nonlocal done
        steps = _facts(run_dir).get("steps")
        if not steps:  # a trial that starts again without a readable trial.json has not counted them yet
            return
        validations = [record for record in read_metrics(run_dir) if METRIC in record]
        for record in validations[done:]:
            done += 1
            last[METRIC] = float(record[METRIC])
            _note(run_dir, {"metric": last[METRIC]})
            done_percent = 100 * int(record["step"]) / steps
            if done_percent < 100:  # a fully trained trial must not be stopped before its evaluation
                last[PERCENT] = done_percent
                ray.tune.report(dict(last))

    with repeat_in_background(report, POLL_SECONDS, "validations"):
        yield last
    report()
