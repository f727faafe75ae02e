"""Many runs of one cluster: what sweeps and reproductions share.

Ray Tune starts the trials, as many at once as the cluster can hold; each is a run of its own, with its own folder, that
continues from its own newest checkpoint. Data, separator and SeparatedStore are made once and shared by all.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray.tune
from rich.console import Console
from rich.live import Live

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment, Resources
from sepscene.orchestration.pipeline.evaluate_stage import score_ladder
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.records.mlflow_mirror import Tracker
from sepscene.orchestration.runtime.concurrency import DRIVER_CPUS, fitting_trials
from sepscene.orchestration.runtime.placement import cluster_nodes
from sepscene.orchestration.sweeps.schedulers import Budget, Tuning
from sepscene.orchestration.sweeps.trial import FAILED, FINISHED, METRIC, PERCENT, STOPPED, run_trial
from sepscene.orchestration.sweeps.trial_plan import Trial
from sepscene.orchestration.sweeps.trial_status import Outcome, is_over, outcomes
from sepscene.orchestration.sweeps.trial_table import Pace, standing, trial_table


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
    if separating and not base.views.separates:  # trials may separate where the base does not
        ours = ours.model_copy(update={"views": base.views.model_copy(update={"pair": "mix-chan"})})
    run = Run.open(folder / "shared", ours, tracking_uri, console, resume=True, tags=tags)
    try:
        train, test = run.manifests()
        ladder = run.ladder(train) if separating else {}
        if ladder and not (run.folder / "listen.html").exists():
            score_ladder(run, test, ladder)
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
            "resources": thrifty(ours.model_copy(update={"store": store}), console),
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
    one = {"trainers": 1, "trainers_min": None, "separation_actors": 1, "separation_actors_min": None, "readers": 1}
    narrow = resources.model_copy(update=one)
    wide_fit, narrow_fit = (
        fitting_trials([base.model_copy(update={"resources": asked})], nodes) for asked in (resources, narrow)
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
    waiting = [trial for trial in trials if tuning.replays or not is_over(folder / "trials" / trial.name)]
    pace = Pace(outcomes(trials, folder))
    table = partial(trial_table, trials, folder, pace)
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
        run_dir = _folder_of(trial, self.folder)
        if run_dir.exists() and not any((run_dir / known).exists() for known in (FINISHED, STOPPED, FAILED)):
            (run_dir / file).write_text(reason)


def _folder_of(trial: Any, folder: Path) -> Path:
    """Where a trial of Tune's runs: its folder notes the id; one that has none yet has the name of the trial."""
    for note in folder.glob("trials/*/trial.json"):
        if json.loads(note.read_text()).get("tune") == trial.trial_id:
            return note.parent
    return folder / "trials" / str(trial)


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


def _at_once(waiting: list[Trial], tuning: Tuning) -> int:
    """How many trials the cluster holds at once.

    Raises:
        SepsceneError: when not even one fits beside its driver, or not the whole of a population.
    """
    if tuning.space:
        experiments = [Experiment.model_validate(tuning.space["trial"]["experiment"])]
    else:
        experiments = [trial.experiment for trial in waiting if trial.experiment]
    at_once = fitting_trials(experiments, cluster_nodes())
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
    """Say in MLflow which trials have not come to their end: their processes may have died before they could."""
    for outcome in found:
        run_dir = folder / "trials" / outcome.trial.name
        if outcome.status != "finished" and (run_dir / "mlflow.json").exists():
            tracker = Tracker(tracking_uri, "sepscene", run_dir)
            tracker.start({"status": outcome.status, "reason": outcome.reason}, {})
            for stage in tracker.stages():
                tracker.finish(stage, "FAILED" if outcome.status == "failed" else "KILLED")
