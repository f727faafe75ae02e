"""Many runs of one cluster: what sweeps and reproductions share.

Ray Tune starts the trials, as many at once as the cluster can hold; each is a run of its own, with its own folder, that
continues from its own newest checkpoint. Data, separator and SeparatedStore are made once and shared by all.
"""

import json
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray.tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from models.config import SepsceneError
from orchestration.config import Experiment, Resources
from orchestration.judging import judge_ladder
from orchestration.placement import Demand, cluster_nodes, concurrent_trials, demands
from orchestration.results import RunResults, Setting, parse_metrics
from orchestration.run import Run
from orchestration.schedulers import Budget, Tuning
from orchestration.sweep_plan import Trial
from orchestration.tracking import Tracker
from orchestration.trial_driver import FAILED, FINISHED, METRIC, PERCENT, STOPPED, run_trial

DRIVER_CPUS = 0.01
"""What Tune sets aside for a trial's driver, which only waits."""

_TAIL_BYTES = 16_384


Status = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """How a trial stands: its results, or why there are none."""

    trial: Trial
    status: Status
    results: RunResults | None
    reason: str


@contextmanager
def parent_run(
    tracking_uri: str, folder: Path, tags: dict[str, str], params: dict[str, Any]
) -> Iterator[tuple[Tracker, dict[str, str]]]:
    """The MLflow run of a whole sweep or reproduction.

    Yields:
        Its tracker, and the tags that make other runs its children.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(tracking_uri, "sepscene", folder)
    tracker.start(tags, params)
    children = {"sweep_id": folder.name}
    if run := tracker.run_id():  # none while MLflow is away: the tag alone must do then
        children["mlflow.parentRunId"] = run
    try:
        yield tracker, children
    except BaseException as error:
        tracker.finish("", "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish("")


def share(
    base: Experiment,
    processors: Iterable[str],
    folder: Path,
    tracking_uri: str,
    console: Console,
    tags: dict[str, str] | None = None,
) -> Experiment:
    """Make what all trials share in FOLDER/shared and point the experiment at it: data, ladder, separated clips.

    Trials that begin beside each other meet the same clips at the same time: each would separate them, did they not
    find the store filled.

    Args:
        base: the experiment that the trials vary.
        processors: names that any of them needs.
        folder: of the sweep.
        tracking_uri: MLflow's.
        console: shows the progress.
        tags: for its run in MLflow.
    """
    separating, store = tuple(sorted(set(processors))), base.store
    if store.mode != "off":
        store = store.model_copy(update={"uri": store.uri or str(folder / "store")})
    ours = base.model_copy(update={"store": store})
    if separating and base.views.pair == "mix-mix":  # trials may separate where the base does not
        ours = ours.model_copy(update={"views": base.views.model_copy(update={"pair": "mix-chan"})})
    run = Run.open(folder / "shared", ours, tracking_uri, console, resume=True, tags=tags)
    try:
        train, test = run.manifests()
        ladder = run.ladder(train) if separating else {}
        if ladder and not (run.folder / "listen.html").exists():
            judge_ladder(run, test, ladder)
        if separating and store.mode != "off":
            run.prefill(train, ladder, separating)
            store = store.model_copy(update={"mode": "prefill"})
    except BaseException:
        run.tracker.finish("", "FAILED")
        raise
    run.tracker.finish("")
    # Trials run in processes of their own, perhaps on other hosts, whose working folder is another one.
    root = base.data.root or str(folder / "shared" / "scenes")
    root = root if "://" in root else str(Path(root).resolve())
    return base.model_copy(
        update={
            "resources": thrifty(base, console),
            "data": base.data.model_copy(update={"root": root}),
            "separator": base.separator.model_copy(
                update={"checkpoints": {name: str(Path(path).resolve()) for name, path in ladder.items()}}
            ),
            "store": store,
            "evaluation": base.evaluation.model_copy(update={"baselines": False}),
        }
    )


def thrifty(base: Experiment, console: Console) -> Resources:
    """What each of many trials asks for: one trainer and one separation actor where only so any, or more at once, fit.

    Most of a small trial is the starting of processes and the waiting for them, so that on a small machine two narrow
    trials beside each other end long before two wide ones in turn. The figures differ by rounding only.
    """
    resources, nodes = base.resources, cluster_nodes()
    narrow = resources.model_copy(update={"trainers": 1, "trainers_min": None, "separation_actors": 1, "readers": 1})
    wide_fit, narrow_fit = (
        concurrent_trials(_demands(base.model_copy(update={"resources": asked})), nodes)
        for asked in (resources, narrow)
    )
    if wide_fit > 1 or narrow_fit <= wide_fit or resources.trainer_gpus or resources.separation_gpus:
        return resources
    console.print(
        f"each trial takes one trainer and one separation actor, so that {narrow_fit} can run at once",
        soft_wrap=True,
    )
    return narrow


def run_trials(
    trials: list[Trial],
    folder: Path,
    tracking_uri: str,
    console: Console,
    ended: Callable[[list[Outcome]], object],
    tuning: Tuning | None = None,
    tags: dict[str, str] | None = None,
) -> list[Outcome]:
    """Run all trials that FOLDER does not hold finished, through the failure of any of them.

    The folders of the trials are the truth: a driver that was killed leaves nothing else that is needed to go on, and
    Tune's own state is not asked for.

    Args:
        trials: names must differ; none where Optuna chooses them.
        folder: each run goes to FOLDER/trials/<name>.
        tracking_uri: MLflow's.
        console: shows the live table.
        ended: called whenever a trial has ended, with the outcomes so far.
        tuning: what chooses, stops and changes trials.
        tags: for the trials' runs in MLflow.
    """
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    tuning = tuning or Tuning()
    waiting = [trial for trial in trials if tuning.replays or not _over(folder / "trials" / trial.name)]
    pace = _Pace(outcomes(trials, folder))
    table = partial(_table, trials, folder, pace)
    if waiting or (tuning.searcher and tuning.samples > 0):
        driver = ray.tune.with_parameters(
            run_trial, folder=str(folder), tracking_uri=tracking_uri, tags=tags or {"sweep_id": folder.name}
        )

        def tell() -> None:
            found = outcomes(trials, folder)
            ended(found)
            if not console.is_terminal:  # where no table can be drawn anew
                console.print(standing(found) + pace.left(found), highlight=False, soft_wrap=True)

        callback = _Ended(folder, tell)
        with Live(console=console, refresh_per_second=1, get_renderable=table), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consider boosting PBT performance")  # see `reuse_actors` below
            _tuner(driver, waiting, tuning, folder, callback).fit()
        _close_runs(outcomes(trials, folder), folder, tracking_uri)
    console.print(table())
    return outcomes(trials, folder)


class _Pace:
    """How long the rest will take, from how long the trials took that have ended since the command began."""

    def __init__(self, found: list[Outcome]) -> None:
        self.begun, self.over_before = time.monotonic(), _count_ended(found)

    def left(self, found: list[Outcome]) -> str:
        """ ", about 12 min left"; nothing while no trial has ended, and nothing in the end."""
        over = _count_ended(found)
        ended, waiting = over - self.over_before, len(found) - over
        if ended < 1 or not waiting:
            return ""
        return f", about {max(1, round((time.monotonic() - self.begun) / ended * waiting / 60))} min left"


def _count_ended(found: list[Outcome]) -> int:
    return sum(outcome.status != "unfinished" for outcome in found)


def standing(found: list[Outcome]) -> str:
    """How far the trials are, in a line: "3 of 18 trials have ended: 2 finished, 1 failed"."""
    counts = Counter(outcome.status for outcome in found)
    over = _count_ended(found)
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if status != "unfinished")
    return f"{over} of {len(found)} trials have ended: {said}" if said else f"none of {len(found)} trials has ended"


def _over(run_dir: Path) -> bool:
    """Whether there is nothing left to do for a trial."""
    return (run_dir / FINISHED).exists() or (run_dir / STOPPED).exists()


def outcomes(trials: list[Trial], folder: Path) -> list[Outcome]:
    """How each trial stands, from the folders alone: the planned ones and those that Optuna chose."""
    planned = {trial.name for trial in trials}
    chosen = []
    for note in sorted(folder.glob("trials/*/trial.json"), key=lambda path: path.stat().st_ctime):
        facts = json.loads(note.read_text())
        if facts["name"] not in planned and facts["chosen"]:
            chosen.append(Trial(facts["name"], None, _settings(facts), facts["seed"]))
    return [_outcome(trial, folder / "trials" / trial.name) for trial in [*trials, *chosen]]


def _outcome(trial: Trial, run_dir: Path) -> Outcome:
    note = run_dir / "trial.json"
    if trial.population and note.exists():  # its settings are those that it has now
        trial = replace(trial, settings=_settings(json.loads(note.read_text())))
    if (run_dir / FINISHED).exists():
        return Outcome(trial, "finished", RunResults.load(run_dir), "")
    for name, status in ((STOPPED, "stopped early"), (FAILED, "failed")):
        if (run_dir / name).exists():
            return Outcome(trial, status, None, (run_dir / name).read_text())  # type: ignore[arg-type]
    return Outcome(trial, "unfinished", None, "")


def _settings(facts: dict[str, Any]) -> dict[str, Setting]:
    return {field: tuple(value) if isinstance(value, list) else value for field, value in facts["settings"].items()}


class _Ended(ray.tune.Callback):
    """Tells the sweep whenever a trial has ended, and writes down what the trial itself could not."""

    def __init__(self, folder: Path, ended: Callable[[], object]) -> None:
        self.folder, self.ended = folder, ended

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore that we never ask for; what holds the terminal cannot be."""
        return {"folder": self.folder}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also called for what a scheduler stops, but not for what a spent budget does."""
        percent, figure = (float(trial.last_result.get(key, math.nan)) for key in (PERCENT, METRIC))
        self._note(trial, STOPPED, f"at {percent:.0f} % of its rows, with a validation kNN mAP of {figure:.3f}")
        self.ended()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also called when the process of a trial's driver died."""
        self._note(trial, FAILED, "the process of its driver died; Ray's logs say why")
        self.ended()

    def _note(self, trial: Any, file: str, reason: str) -> None:
        run_dir = self.folder / "trials" / str((trial.last_result or {}).get("name") or trial)
        if run_dir.exists() and not any((run_dir / known).exists() for known in (FINISHED, STOPPED, FAILED)):
            (run_dir / file).write_text(reason)


def _tuner(
    driver: Callable[..., Any], waiting: list[Trial], tuning: Tuning, folder: Path, callback: _Ended
) -> ray.tune.Tuner:
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths of a configuration mean the driver's folder
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer output talks even when asked not to
    return ray.tune.Tuner(
        ray.tune.with_resources(driver, {"CPU": DRIVER_CPUS}),
        param_space=tuning.space or _space(waiting),
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=_at_once(waiting, tuning),
            num_samples=tuning.samples,
            search_alg=tuning.searcher,
            scheduler=tuning.scheduler,
            # A driver that has imported everything runs the next trial, too; but one that was told to stop does not
            # listen until its own trial has ended, so where trials are stopped each has a process of its own.
            reuse_actors=tuning.scheduler is None,
            trial_name_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(folder / "tune"),
            verbose=0,
            callbacks=[callback],
            stop=Budget(tuning.spent),
        ),
    )


def _space(waiting: list[Trial]) -> dict[str, Any]:
    """Tune's form of a list of trials; the settings of a population stand apart, where PBT can change them."""
    listed = [trial.for_tune() for trial in waiting]
    space: dict[str, Any] = {"trial": ray.tune.grid_search(listed)}
    if waiting[0].population:
        space["settings"] = ray.tune.sample_from(_starts)
    return space


def _name(trial: Any) -> str:
    """Tune's name for a trial; a member of a population keeps it when it is given another one's configuration."""
    return str(trial.config["trial"]["name"] or trial.trial_id)


def _starts(spec: Any) -> dict[str, Any]:
    return dict(spec.config["trial"]["starts"])


def _demands(experiment: Experiment) -> list[Demand]:
    """What a trial asks for, its driver included."""
    validates = experiment.training.validation_every_steps > 0
    return demands(experiment.resources, experiment.views.pair, DRIVER_CPUS, validates)


def _at_once(waiting: list[Trial], tuning: Tuning) -> int:
    """How many trials the cluster holds at once.

    Raises:
        SepsceneError: when not even one fits beside its driver, or not the whole of a population.
    """
    if tuning.space:
        experiments = [Experiment.model_validate(tuning.space["trial"]["experiment"])]
    else:
        experiments = [trial.experiment for trial in waiting if trial.experiment]
    # The most demanding decides: rows without separation ask for less than those beside them.
    kinds = {str(asked): asked for asked in map(_demands, experiments)}
    nodes = cluster_nodes()
    at_once = min(concurrent_trials(asked, nodes) for asked in kinds.values())
    if not at_once:
        raise SepsceneError(
            "not even one trial fits beside its driver; lower resources.separation_cpus or trainer_cpus"
        )
    if waiting and waiting[0].population and at_once < len(waiting):
        raise SepsceneError(
            f"a population trains side by side, but of its {len(waiting)} members {at_once} fit into this cluster at "
            "once; lower budget.trials or what each asks for in resources, or take scheduler asha, which can wait"
        )
    return at_once


def _close_runs(found: list[Outcome], folder: Path, tracking_uri: str) -> None:
    """Say in MLflow which trials have not come to their end: their processes were stopped before they could."""
    for outcome in found:
        run_dir = folder / "trials" / outcome.trial.name
        if outcome.status in ("stopped early", "unfinished") and (run_dir / "mlflow.json").exists():
            tracker = Tracker(tracking_uri, "sepscene", run_dir)
            tracker.start({"status": outcome.status, "reason": outcome.reason}, {})
            for stage in tracker.stages():
                tracker.finish(stage, "KILLED")


def _table(trials: list[Trial], folder: Path, pace: _Pace) -> Table:
    """The trials as they stand."""
    found = outcomes(trials, folder)
    table = Table(title=folder.name + pace.left(found))
    for column in ("trial", "state", "rows", "loss", "kNN mAP", "mAP"):
        table.add_column(column, justify="left" if column in ("trial", "state") else "right")
    for outcome in found:
        rows, loss, validation = _progress(folder / "trials" / outcome.trial.name)
        state = outcome.status if outcome.status != "unfinished" else "running" if rows else "waiting"
        figure = outcome.results.encoders[0].figures["shallow_map"].value if outcome.results else math.nan
        table.add_row(outcome.trial.name, state, rows, loss, validation, "" if math.isnan(figure) else f"{figure:.3f}")
    return table


def _progress(run_dir: Path) -> tuple[str, str, str]:
    """The newest rows, loss and validation figure, from the end of the metrics file."""
    path, newest = run_dir / "metrics.jsonl", dict[str, float | str]()
    if path.exists():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            for record in parse_metrics(file.read()):
                newest |= record
    formats = (("rows", ".0f"), ("loss", ".3f"), (METRIC, ".3f"))
    rows, loss, validation = (format(newest[key], form) if key in newest else "" for key, form in formats)
    return rows, loss, validation
