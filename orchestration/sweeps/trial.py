"""The driver of one trial: a whole run inside a Tune trial, and what it tells Tune while it trains.

Started anew, in whatever way it ended before, it continues from its own newest checkpoint. Its folder is the truth:

| file | says |
|---|---|
| trial.json | its name, its settings, its newest validation figure, the GPUs it holds, its newest id in Tune |
| held/<nanoseconds> | one file a start; its last change minus its name is how long the trial held its resources |
| results.json | its figures |
| finished | it has finished: also its report is written, its encoder published and its run in MLflow closed |
| failure | why it failed; it is tried again when the sweep goes on |
| stopped | why a scheduler stopped it; it is not tried again |
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune import Checkpoint
from rich.console import Console

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.pipeline.evaluate_stage import evaluate_run
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.records.checkpoints import newest_sound, write_whole
from sepscene.orchestration.records.metrics_log import append_metrics
from sepscene.orchestration.records.results import RunResults, Setting, read_metrics
from sepscene.orchestration.repeating import again_and_again
from sepscene.orchestration.runtime.concurrency import gpus_of
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.sweeps.search_space import readable, setting_name, shown_setting
from sepscene.orchestration.training.stream import schedule_of

METRIC = "validation_knn_map"
PERCENT = "percent"
"""How much of its rows a trial has trained on: the same scale for trials of different batch sizes."""

FINISHED, FAILED, STOPPED = "finished", "failure", "stopped"
POLL_SECONDS = 1.0
STALE_SECONDS = 15.0
"""A trial whose mark has not changed for so long is not running."""


def run_trial(config: dict[str, Any], folder: str, tracking_uri: str, tags: dict[str, str]) -> None:
    """What Tune runs.

    Args:
        config: "trial" with its name and experiment, and where Tune chooses the settings, "settings".
        folder: of the sweep.
        tracking_uri: MLflow's.
        tags: for the trial's run in MLflow, its parent among them.
    """
    trial, chosen = config["trial"], config.get("settings", {})
    settings = {field: readable(value) for field, value in chosen.items()}
    experiment = Experiment.model_validate(trial["experiment"]).changed(settings)
    name = trial["name"] or f"{setting_name(settings)},seed={experiment.seed}"
    if trial.get("population"):  # PBT hands out whole configurations, names included
        name = ray.tune.get_context().get_trial_name()
    run_dir = Path(folder) / "trials" / name
    if (run_dir / FINISHED).exists() or (run_dir / STOPPED).exists():
        _tell_again(run_dir, experiment)
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    shown = shown_setting(settings) or trial.get("shown", {})
    facts = {"name": name, "settings": shown, "seed": experiment.seed, "chosen": chosen}
    _note(run_dir, {**facts, "tune": ray.tune.get_context().get_trial_id(), "gpus": gpus_of(experiment)})
    if trial.get("population"):
        _take_over(run_dir, name, experiment, settings)
    (run_dir / FAILED).unlink(missing_ok=True)
    tags = {**tags, "status": "running", "reason": ""}
    tags |= {f"sweep.{field}": _joined(value) for field, value in shown.items()}
    with _holding(run_dir):
        results, reported = _run(run_dir, experiment, tracking_uri, tags, bool(trial.get("population")))
        (run_dir / FINISHED).touch()
    ray.tune.report({**_figures(results), **reported})


def _tell_again(run_dir: Path, experiment: Experiment) -> None:
    """The figures of a trial that is over once more, for a scheduler that has lost its memory with its driver."""
    with _validations_reported(run_dir, experiment, from_start=True) as reported:
        pass
    figures = _figures(RunResults.load(run_dir)) if (run_dir / FINISHED).exists() else {}
    ray.tune.report({**figures, **reported})


def _run(
    run_dir: Path, experiment: Experiment, tracking_uri: str, tags: dict[str, str], population: bool
) -> tuple[RunResults, dict[str, Any]]:
    configure_data(experiment.training.ordered)
    run = Run.open(run_dir, experiment, tracking_uri, Console(quiet=True), resume=True, tags=tags)
    try:
        train, test = run.manifests()
        with _validations_reported(run_dir, experiment, not population, len(train.clips), population) as reported:
            run.encoder(train, experiment.separator.checkpoints)
        results = evaluate_run(run, train, test, {})
    except BaseException as error:
        (run_dir / FAILED).write_text(f"{type(error).__name__}: {error}")
        run.tracker.finish("", "FAILED")
        raise
    run.tracker.tag("", {"status": "finished"})
    run.tracker.finish("")
    return results, reported


def _figures(results: RunResults) -> dict[str, float]:
    return {key: figure.value for key, figure in results.encoders[0].figures.items()}


def _joined(value: Setting) -> str:
    """S2+N for a combination, as the run's own tag has it."""
    return "+".join(value) if isinstance(value, list | tuple) else str(value)


def _note(run_dir: Path, facts: dict[str, Any]) -> None:
    path, known = run_dir / "trial.json", {}
    if path.exists():
        known = json.loads(path.read_text())
    write_whole(path, json.dumps({**known, **facts}))


@contextmanager
def _holding(run_dir: Path) -> Iterator[None]:
    """Keep up while the block runs how long the trial holds its resources, in a way that kill -9 cannot lose."""
    mark = run_dir / "held" / str(time.time_ns())
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    try:
        with again_and_again(mark.touch, POLL_SECONDS, "holding"):
            yield
    finally:
        mark.touch()


def held_seconds(run_dir: Path) -> float:
    """How long a trial has held its share of the cluster, over all its starts."""
    return sum(max(0, mark.stat().st_mtime_ns - int(mark.name)) for mark in run_dir.glob("held/*")) / 1e9


def is_held(run_dir: Path) -> bool:
    """Whether a trial holds its resources now."""
    newest = max((mark.stat().st_mtime for mark in run_dir.glob("held/*")), default=0.0)
    return time.time() - newest < STALE_SECONDS


@contextmanager
def _validations_reported(
    run_dir: Path, experiment: Experiment, from_start: bool, clips: int | None = None, checkpoints: bool = False
) -> Iterator[dict[str, Any]]:
    """While the block runs, report each validation figure of the metrics file to Tune.

    Args:
        from_start: whether those that are there already are reported, too.
        clips: training clips; none when the trial is over.
        checkpoints: whether to bring the newest checkpoint along, for others to continue from.

    Yields:
        What was reported last: the final report of a trial repeats it.
    """
    last: dict[str, Any] = {"name": run_dir.name}
    told = 0 if from_start else len(_validations(run_dir))
    steps = _steps(run_dir, experiment, clips)

    def tell() -> None:
        nonlocal told
        for step, figure in _validations(run_dir)[told:]:
            told += 1
            _note(run_dir, {"figure": figure})
            last.update({METRIC: figure})
            if step < steps:  # at its end a trial is judged, and neither stopped nor changed any more
                last.update({PERCENT: 100 * step / steps})
                with _newest(run_dir, experiment) if checkpoints else nullcontext() as brought:
                    ray.tune.report(dict(last), checkpoint=brought)

    with again_and_again(tell, POLL_SECONDS, "validations"):
        yield last
    tell()


def _validations(run_dir: Path) -> list[tuple[int, float]]:
    """Step and figure of each validation so far."""
    return [(int(r["step"]), float(r[METRIC])) for r in read_metrics(run_dir) if METRIC in r]


def _steps(run_dir: Path, experiment: Experiment, clips: int | None) -> int:
    """Steps of the trial's whole training; a trial that is over has noted them."""
    if clips is None:
        return int(json.loads((run_dir / "trial.json").read_text()).get("steps", 1))
    steps = -(-schedule_of(experiment, clips).rows // experiment.training.global_batch)
    _note(run_dir, {"steps": steps})
    return steps


def _checkpoints(run_dir: Path, experiment: Experiment) -> Path:
    return run_dir / "checkpoints" / f"pretrain-{experiment.views.pair}"


@contextmanager
def _newest(run_dir: Path, experiment: Experiment) -> Iterator[Checkpoint | None]:
    """The newest checkpoint with the name of its trial, while the block runs: Tune takes a copy to hand to others.

    Always in the same folder of the trial: of one that Tune ends meanwhile, at most one is left, where people look.
    """
    newest = newest_sound(_checkpoints(run_dir, experiment))
    if newest is None:
        yield None
        return
    folder = run_dir / "handed-on"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(newest, folder / newest.name)
        (folder / "member").write_text(run_dir.name)
        yield Checkpoint(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_over(run_dir: Path, name: str, experiment: Experiment, settings: dict[str, Any]) -> None:
    """A member of a population starts: with the weights that it was given, and its settings as they are now.

    The ledger comes with the weights: it says what they have consumed, whoever trained them.
    """
    given = ray.tune.get_checkpoint()
    if given is not None:
        with given.as_directory() as folder:
            donor = (Path(folder) / "member").read_text()
            if donor != name:
                target = _checkpoints(run_dir, experiment)
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir(parents=True)
                state = next(Path(folder).glob("step-*"))
                shutil.copytree(state, target / state.name)
                said = f"goes on from {donor} at step {int(state.name[5:])} with {setting_name(settings)}"
                append_metrics(run_dir / "metrics.jsonl", target.name, [{"event": said}])
    saved = run_dir / "experiment.yaml"
    if saved.exists():
        saved.unlink()  # the settings of a member change; its history is in the events of its metrics
