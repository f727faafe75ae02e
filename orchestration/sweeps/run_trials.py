"""Many runs of one cluster: what sweeps and reproductions share.

Ray Tune starts the trials, as many at once as the cluster can hold; each is a run of its own, with its own folder, that
continues from its own newest checkpoint. Data, separator and SeparatedStore are made once and shared by all.
"""

import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray.tune
from rich.console import Console
from rich.live import Live

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment, Resources
from sepscene.orchestration.pipeline.evaluate_stage import score_ladder
from sepscene.orchestration.pipeline.run import Run, continuable
from sepscene.orchestration.records.environment import command_line
from sepscene.orchestration.records.files import write_whole
from sepscene.orchestration.records.mlflow_mirror import Tracker, closing
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.runtime.concurrency import DRIVER_CPUS, fitting_trials
from sepscene.orchestration.runtime.placement import cluster_nodes
from sepscene.orchestration.sweeps.schedulers import Tuning
from sepscene.orchestration.sweeps.trial import METRIC, PERCENT, Work, run_trial, whole_run
from sepscene.orchestration.sweeps.trial_plan import Trial
from sepscene.orchestration.sweeps.trial_status import Outcome, Pace, outcomes, standing, trial_table


@contextmanager
def parent_run(
    tracking_uri: str, folder: Path, tags: dict[str, str], params: dict[str, Any], console: Console
) -> Iterator[tuple[Tracker, dict[str, str]]]:
    """The MLflow run of a whole sweep or reproduction; where that ends badly, says how to continue it.

    Yields:
        Its tracker, and the tags that make other runs its children.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(tracking_uri, "sepscene", folder)
    tracker.start("", tags, params)
    tracker.send()  # its trials must know its id
    children = {"sweep_id": folder.name}
    if run := tracker.run_id():  # none while MLflow is away: the tag alone must do then
        children["mlflow.parentRunId"] = run
    with closing(tracker), continuable(console, _again(folder.name)):
        yield tracker, children


def _again(name: str) -> str:
    """The command that continues the folder of that name: this one, with the name."""
    command = command_line()
    return command if re.search(r" --(id|resume)\b", command) else f"{command} --id {shlex.quote(name)}"


def share(
    base: Experiment,
    processors: Iterable[str],
    folder: Path,
    tracking_uri: str,
    console: Console,
    tags: dict[str, str],
) -> Experiment:
    """Make what all trials share in FOLDER/shared and point the experiment at it: data, ladder, separated clips.

    The store is filled before the first trial begins. Otherwise trials that start side by side would all separate the
    same clips at the same time.

    Args:
        base: the experiment that the trials vary.
        processors: names that any of them needs.
        tags: for its run in MLflow.
    """
    separating = tuple(sorted(set(processors)))
    ours = base
    if base.store.mode != "off":
        ours = ours.changed({"store.uri": base.store.uri or str(SweepFolder(folder).store)})
    if separating and not base.views.separates:  # trials may separate where the base does not
        ours = ours.changed({"views.pair": "mix-chan"})
    with Run.open(SweepFolder(folder).shared.path, ours, tracking_uri, console, resume=True, tags=tags) as run:
        train, test = run.manifests
        ladder = run.ladder(train) if separating else {}
        if ladder and not run.files.listening_page.exists():
            score_ladder(run, test, ladder)
        if separating and ours.store.mode != "off":
            run.prefill(train, ladder, separating)
            ours = ours.changed({"store.mode": "prefill"})
    # Trials run in processes of their own, perhaps on other hosts, with another working folder.
    root = base.data.root or str(SweepFolder(folder).shared.scenes)
    return ours.changed(
        {
            "resources": narrow_resources(ours, console).model_dump(mode="json"),
            "data.root": root if "://" in root else str(Path(root).resolve()),
            "separator.checkpoints": {name: str(Path(path).resolve()) for name, path in ladder.items()},
            "views.pair": base.views.pair,
            "evaluation.baselines": False,
        }
    )


def narrow_resources(base: Experiment, console: Console) -> Resources:
    """What each of many trials asks for: one trainer and one separation actor where this lets more trials run at once.

    Most of a small trial is the starting of processes and the waiting for them. On a small machine, two narrow trials
    side by side therefore end long before two wide ones in turn. Their metrics differ by rounding only.
    """
    one = {"trainers": 1, "trainers_min": None, "separation_actors": 1, "separation_actors_min": None, "readers": 1}
    narrow = base.changed({f"resources.{field}": value for field, value in one.items()})
    nodes = cluster_nodes()
    wide_fit = fitting_trials([base], nodes)
    narrow_fit = fitting_trials([narrow], nodes)
    on_gpus = base.resources.trainer_gpus or base.resources.separation_gpus
    if wide_fit > 1 or narrow_fit <= wide_fit or on_gpus:
        return base.resources
    console.print(
        f"each trial takes one trainer and one separation actor, so that {narrow_fit} can run at once",
        soft_wrap=True,
    )
    return narrow.resources


def run_trials(
    trials: list[Trial],
    folder: Path,
    tracking_uri: str,
    console: Console,
    ended: Callable[[list[Outcome]], object],
    tuning: Tuning | None = None,
    tags: dict[str, str] | None = None,
    work: Work = whole_run,
    callbacks: Sequence[ray.tune.Callback] = (),
) -> list[Outcome]:
    """Run all trials that FOLDER does not hold finished, through the failure of any of them.

    The folders of the trials are the truth. Going on needs nothing else of a killed driver, and no state of Tune's.

    Args:
        trials: names must differ, each run goes to FOLDER/trials/<name>; none where Optuna chooses them.
        ended: called whenever a trial has ended, with the outcomes so far.
        tags: for the trials' runs in MLflow.
        callbacks: the user's own, for Tune.
    """
    SweepFolder(folder).trials.mkdir(parents=True, exist_ok=True)
    tuning = tuning or Tuning()
    # For a scheduler, finished trials report their validations again when a sweep goes on.
    waiting = [trial for trial in trials if tuning.scheduler or not SweepFolder(folder).trial(trial.name).is_over]
    pace = Pace(outcomes(trials, folder))
    table = partial(trial_table, trials, folder, pace)
    if waiting or (tuning.searcher and tuning.samples > 0):
        driver = ray.tune.with_parameters(
            run_trial, folder=str(folder), tracking_uri=tracking_uri, tags=tags or {}, work=work
        )

        def report() -> None:
            found = outcomes(trials, folder)
            ended(found)
            if not console.is_terminal:  # where no table can be drawn again
                console.print(standing(found) + pace.left(found), highlight=False, soft_wrap=True)

        live = Live(console=console, refresh_per_second=1, get_renderable=table, transient=True)
        with live if console.is_terminal else nullcontext():
            _tuner(driver, waiting, tuning, folder, [TrialEnds(folder, report), *callbacks]).fit()
        close_runs(outcomes(trials, folder), folder, tracking_uri)
    console.print(table())
    return outcomes(trials, folder)


class TrialEnds(ray.tune.Callback):
    """Calls the sweep whenever a trial has ended, and writes down what the trial itself could not."""

    def __init__(self, folder: Path, ended: Callable[[], object]) -> None:
        self.folder = folder
        self.ended = ended

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore that we do not use; a terminal cannot be pickled."""
        return {"folder": self.folder}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also called for what a scheduler stops, but not for what a spent budget does."""
        percent, metric = (float(trial.last_result.get(key, math.nan)) for key in (PERCENT, METRIC))
        folder = self._folder(trial)
        self._note(folder, folder.stopped, f"at {percent:.0f} % of its rows, with a validation kNN mAP of {metric:.3f}")
        self.ended()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also called when the process of a trial's driver died."""
        folder = self._folder(trial)
        self._note(folder, folder.failure, "the process of its driver died; Ray's logs say why")
        self.ended()

    def _folder(self, trial: Any) -> RunFolder:
        return SweepFolder(self.folder).trial(_name(trial))

    def _note(self, folder: RunFolder, file: Path, reason: str) -> None:
        if folder.path.exists() and not folder.is_over and not folder.failure.exists():
            write_whole(file, reason)


def _name(trial: Any) -> str:
    """The name of the trial's folder, which is its name for Tune as well."""
    return str(trial.config["trial"]["name"])


def _tuner(
    driver: Callable[..., Any], waiting: list[Trial], tuning: Tuning, folder: Path, callbacks: list[ray.tune.Callback]
) -> ray.tune.Tuner:
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths of a configuration mean the driver's folder
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer output prints even when asked not to
    if tuning.base:
        experiments = [tuning.base]
        space: dict[str, Any] = {"trial": {"experiment": tuning.base.model_dump(mode="json")}}
    else:
        experiments = [trial.experiment for trial in waiting if trial.experiment]
        space = {"trial": ray.tune.grid_search([trial.for_tune() for trial in waiting])}
    return ray.tune.Tuner(
        ray.tune.with_resources(driver, {"CPU": DRIVER_CPUS}),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=_at_once(experiments),
            num_samples=tuning.samples,
            search_alg=tuning.searcher,
            scheduler=tuning.scheduler,
            # A driver process that has imported everything runs the next trial, too. But one that was told to stop
            # does not react until its own trial has ended: where trials are stopped, each has its own process.
            reuse_actors=tuning.scheduler is None,
            trial_name_creator=_name,
            trial_dirname_creator=_name,  # or all of a trial's settings, cut at 130 characters
        ),
        run_config=ray.tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(SweepFolder(folder).tune),
            verbose=0,
            callbacks=callbacks,
            stop=tuning.stopper,
        ),
    )


def _at_once(experiments: list[Experiment]) -> int:
    """How many trials the cluster holds at once.

    Raises:
        SepsceneError: when not even one fits beside its driver.
    """
    at_once = fitting_trials(experiments, cluster_nodes())
    if not at_once:
        raise SepsceneError(
            "not even one trial fits beside its driver; lower resources.separation_cpus or trainer_cpus"
        )
    return at_once


def close_runs(found: list[Outcome], folder: Path, tracking_uri: str) -> None:
    """Say in MLflow which trials have not finished: their processes may have died before they could."""
    for outcome in found:
        run_dir = SweepFolder(folder).trial(outcome.trial.name).path
        if outcome.status != "finished" and RunFolder(run_dir).mlflow.exists():
            tracker = Tracker(tracking_uri, "sepscene", run_dir)
            tracker.start("", {"status": outcome.status, "reason": outcome.reason}, {})
            tracker.send()
            for stage in reversed(tracker.stages()):  # the parent last: with it, all that waits is sent
                tracker.finish(stage, "FAILED" if outcome.status == "failed" else "KILLED")
