"""Many runs of one cluster: what sweeps and reproductions share.

Ray Tune starts the trials, as many at once as the cluster can hold; each is a run of its own, with its own folder, that
continues from its own newest checkpoint. Data, separator and SeparatedStore are made once and shared by all.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from models.config import SepsceneError
from orchestration.config import Experiment
from orchestration.judging import judge_run
from orchestration.placement import cluster_nodes, concurrent_trials, demands
from orchestration.results import RunResults, Setting
from orchestration.run import Run
from orchestration.stream import configure_data

DRIVER_CPUS = 0.01
"""What Tune sets aside for a trial's driver, which only waits."""


@dataclass(frozen=True)
class Trial:
    """One run of many."""

    name: str
    experiment: Experiment
    settings: dict[str, Setting]

    @property
    def seed(self) -> int:
        """The seed of its run."""
        return self.experiment.seed


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: its results, or why there are none."""

    trial: Trial
    results: RunResults | None
    reason: str


def share(base: Experiment, processors: Iterable[str], folder: Path, tracking_uri: str, console: Console) -> Experiment:
    """Make what all trials share in FOLDER/shared and point the experiment at it.

    Args:
        base: the experiment that the trials vary.
        processors: names that any of them needs.
        folder: of the sweep.
        tracking_uri: MLflow's.
        console: shows the progress.
    """
    run = Run.open(folder / "shared", base, tracking_uri, console, resume=True)
    train, _ = run.manifests()
    ladder = run.ladder(train) if set(processors) else {}
    run.tracker.finish("")
    # Trials run in processes of their own, perhaps on other hosts, whose working folder is another one.
    root = base.data.root or str(folder / "shared" / "scenes")
    root = root if "://" in root else str(Path(root).resolve())
    return base.model_copy(
        update={
            "data": base.data.model_copy(update={"root": root}),
            "separator": base.separator.model_copy(update={"checkpoints": ladder}),
            "store": base.store.model_copy(update={"uri": base.store.uri or str(folder / "store")}),
            "evaluation": base.evaluation.model_copy(update={"baselines": False}),
        }
    )


def run_trials(
    trials: list[Trial], folder: Path, tracking_uri: str, console: Console, ended: Callable[[list[Outcome]], object],
    hours: float | None = None,
) -> list[Outcome]:  # fmt: skip
    """Run all trials that FOLDER does not hold finished, through the failure of any of them.

    Args:
        trials: names must differ.
        folder: each run goes to FOLDER/trials/<name>.
        tracking_uri: MLflow's.
        console: shows the live table.
        ended: called whenever a trial has ended, with the outcomes so far.
        hours: no trial goes on beyond this wall time; none has no limit.
    """
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    waiting = [trial for trial in trials if not (folder / "trials" / trial.name / "results.json").exists()]
    if waiting:
        asked = demands(waiting[0].experiment.resources, waiting[0].experiment.views.pair, DRIVER_CPUS)
        at_once = concurrent_trials(asked, cluster_nodes())
        if not at_once:
            raise SepsceneError(
                "not even one trial fits beside its driver; lower resources.separation_cpus or trainer_cpus"
            )
        with Live(console=console, refresh_per_second=1, get_renderable=lambda: _table(trials, folder)):
            _tuner(waiting, folder, tracking_uri, at_once, hours, lambda: ended(
                outcomes(trials, folder))).fit()  # fmt: skip
    console.print(_table(trials, folder))
    return outcomes(trials, folder)


def outcomes(trials: list[Trial], folder: Path) -> list[Outcome]:
    """How each trial stands, from the folders alone."""
    found = []
    for trial in trials:
        run_dir, results, reason = folder / "trials" / trial.name, None, ""
        if (run_dir / "results.json").exists():
            results = RunResults.load(run_dir)
        elif (run_dir / "failure").exists():
            reason = (run_dir / "failure").read_text()
        found.append(Outcome(trial, results, reason))
    return found


class _Ended(ray.tune.Callback):
    """Tells the sweep whenever a trial has ended, in whatever way."""

    def __init__(self, ended: Callable[[], object]) -> None:
        self.ended = ended

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended()


def _tuner(
    waiting: list[Trial], folder: Path, uri: str, at_once: int, hours: float | None, ended: Callable[[], object]
) -> ray.tune.Tuner:
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, folder=str(folder), tracking_uri=uri), {"CPU": DRIVER_CPUS}
    )
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths of a configuration mean the driver's folder
    space = [{"name": t.name, "experiment": t.experiment.model_dump(mode="json")} for t in waiting]
    return ray.tune.Tuner(
        trainable,
        param_space={"trial": ray.tune.grid_search(space)},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=at_once, time_budget_s=None if hours is None else hours * 3600
        ),
        run_config=ray.tune.RunConfig(
            name=f"tune-{time.time_ns()}", storage_path=str(folder / "tune"), verbose=0, callbacks=[_Ended(ended)]
        ),
    )


def run_trial(config: dict[str, Any], folder: str, tracking_uri: str) -> None:
    """The driver of one trial: its whole run. Started anew, it continues from its own newest checkpoint."""
    name = config["trial"]["name"]
    experiment = Experiment.model_validate(config["trial"]["experiment"])
    run_dir = Path(folder) / "trials" / name
    configure_data(experiment.training.ordered)
    (run_dir / "failure").unlink(missing_ok=True)
    run = Run.open(run_dir, experiment, tracking_uri, Console(quiet=True), resume=True)
    try:
        train, test = run.manifests()
        run.encoder(train, experiment.separator.checkpoints)
        results = judge_run(run, train, test, {})
    except BaseException as error:
        (run_dir / "failure").write_text(f"{type(error).__name__}: {error}")
        run.tracker.finish("", "FAILED")
        raise
    run.tracker.finish("")
    ray.tune.report({key: figure.value for key, figure in results.encoders[0].figures.items()})


def _table(trials: list[Trial], folder: Path) -> Table:
    """The trials as they stand."""
    table = Table(title=folder.name)
    for column in ("trial", "state", "rows", "loss", "mAP"):
        table.add_column(column, justify="left" if column in ("trial", "state") else "right")
    for outcome in outcomes(trials, folder):
        rows, loss = _progress(folder / "trials" / outcome.trial.name)
        state = "finished" if outcome.results else "failed" if outcome.reason else "running" if rows else "waiting"
        figure = outcome.results.encoders[0].figures["shallow_map"].value if outcome.results else math.nan
        table.add_row(outcome.trial.name, state, rows, loss, "" if math.isnan(figure) else f"{figure:.3f}")
    return table


def _progress(run_dir: Path) -> tuple[str, str]:
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return "", ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = [line for line in file.read().splitlines()[:-1] if line.startswith(b'{"stage"')]
    records = [record for line in lines if "rows" in (record := json.loads(line))]
    return (
        (f"{records[-1]['rows']:.0f}", f"{records[-1]['loss']:.3f}") if records and "loss" in records[-1] else ("", "")
    )
