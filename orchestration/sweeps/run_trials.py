"""Many runs on one cluster: the common part of sweeps and reproductions.

Ray Tune runs as many trials in parallel as fit the cluster. Each trial is a separate run with its own folder and
continues from its newest checkpoint. Data, separators and the SeparatedStore are created once and shared by all trials.
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
from sepscene.orchestration.pipeline.run import Run, with_resume_hint
from sepscene.orchestration.records.environment import command_line
from sepscene.orchestration.records.files import write_text_atomically
from sepscene.orchestration.records.mlflow_mirror import Tracker, closing
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.runtime.concurrency import DRIVER_CPUS, fitting_trials
from sepscene.orchestration.runtime.placement import cluster_nodes
from sepscene.orchestration.sweeps.schedulers import Tuning
from sepscene.orchestration.sweeps.trial import METRIC, PERCENT, Work, run_trial, whole_run
from sepscene.orchestration.sweeps.trial_plan import Trial, possible_experiments
from sepscene.orchestration.sweeps.trial_status import Outcome, Pace, outcomes, progress_line, trial_table


@contextmanager
def parent_run(
    tracking_uri: str, folder: Path, tags: dict[str, str], params: dict[str, Any], console: Console
) -> Iterator[tuple[Tracker, dict[str, str]]]:
    """The MLflow run of a sweep or reproduction. When the block fails, prints the command that continues it.

    Yields:
        Its tracker, and the tags that make other runs its children.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(tracking_uri, "sepscene", folder)
    tracker.start("", tags, params)
    tracker.send()  # now, because the trials need the id of this run
    children = {"sweep_id": folder.name}
    if run := tracker.run_id():  # None while MLflow cannot be reached: then sweep_id is the only connection
        children["mlflow.parentRunId"] = run
    with closing(tracker), with_resume_hint(console, _continue_command(folder)):
        yield tracker, children


def _continue_command(folder: Path) -> str:
    """The command that continues this folder: the current command, with --id; for Python, a command for its sweep."""
    command = command_line()
    if not command:
        words = ["sepscene", "sweep", str(SweepFolder(folder).configuration), "--storage", str(folder.parent)]
        command = shlex.join(words)
    return command if re.search(r" --(id|resume)\b", command) else f"{command} --id {shlex.quote(folder.name)}"


def prepare_shared(
    base: Experiment,
    processors: Iterable[str],
    folder: Path,
    tracking_uri: str,
    console: Console,
    tags: dict[str, str],
) -> Experiment:
    """Create the data, ladder and separated clips that all trials share in FOLDER/shared.

    The store is filled before the first trial starts. Otherwise trials that start at the same time would all separate
    the same clips.

    Args:
        base: the experiment that the trials vary.
        processors: names of the processors that any trial needs.

    Returns:
        The experiment, set to use the shared data.
    """
    separating = tuple(sorted(set(processors)))
    ours = base
    if base.store.mode != "off":
        ours = ours.changed({"store.uri": base.store.uri or str(SweepFolder(folder).store)})
    if separating and not base.views.separates:  # trials may separate where the base does not
        ours = ours.changed({"views.pair": "mix-chan"})
    with Run.open(SweepFolder(folder).shared.path, ours, tracking_uri, console, resume=True, tags=tags) as run:
        _ = run.manifests  # checks the data, and generates the scenes that all trials share
        ladder = run.ladder() if separating else {}
        if ladder and not run.files.listening_page.exists():
            score_ladder(run, ladder)
        if separating and ours.store.mode != "off":
            run.prefill(ladder, separating)
            ours = ours.changed({"store.mode": "prefill"})
    # Trials run in separate processes, possibly on other hosts, with other working folders: paths must be absolute.
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
    """The resources of each trial: reduced to one trainer and one separation actor if more trials then fit the cluster.

    Small trials spend most of their time starting processes and waiting for them. On a small machine, two narrow trials
    in parallel therefore finish long before two wide ones in sequence. Their metrics differ only by rounding.
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
        f"each trial uses one trainer and one separation actor, so that {narrow_fit} trials can run in parallel",
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
    """Run all trials that are not finished, and return the outcomes of all. A failed trial does not stop the others.

    The state of a trial is stored only in its folder: to continue after a crash, neither the driver nor Tune's own
    state is needed.

    Args:
        trials: with unique names, stored in FOLDER/trials/<name>; empty if Optuna chooses them.
        ended: called with the outcomes of all trials whenever one ends.
        tuning: scheduler, searcher and stopper for Tune; None: all trials run to their end.
        work: the function that a trial runs.
        callbacks: callbacks of the user for Tune.
    """
    SweepFolder(folder).trials.mkdir(parents=True, exist_ok=True)
    tuning = tuning or Tuning()
    # With a scheduler, finished trials run again to report their validations to it, but train nothing.
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
            if not console.is_terminal:  # without a terminal, the table cannot be updated in place
                console.print(progress_line(found) + pace.time_left(found), highlight=False, soft_wrap=True)

        live = Live(console=console, refresh_per_second=1, get_renderable=table, transient=True)
        with live if console.is_terminal else nullcontext():
            _tuner(driver, waiting, tuning, folder, [TrialEndCallback(folder, report), *callbacks]).fit()
        close_runs(outcomes(trials, folder), folder, tracking_uri)
    console.print(table())
    return outcomes(trials, folder)


class TrialEndCallback(ray.tune.Callback):
    """Calls `ended` when a trial ends, and records why, if the trial could not record it itself."""

    def __init__(self, folder: Path, ended: Callable[[], object]) -> None:
        self.folder = folder
        self.ended = ended

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out `ended`, which can use a terminal: Tune pickles callbacks, and a terminal cannot be pickled."""
        return {"folder": self.folder}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also called for trials that a scheduler stops, but not when the budget is spent."""
        percent = float(trial.last_result.get(PERCENT, math.nan))
        metric = float(trial.last_result.get(METRIC, math.nan))
        reason = f"at {percent:.0f} % of its rows, with a validation kNN mAP of {metric:.3f}"
        self._end(trial, RunFolder.stopped, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also called when the driver process of a trial died."""
        self._end(trial, RunFolder.failure, "its driver process died; see Ray's logs for the reason")

    def _end(self, trial: Any, file: Path, reason: str) -> None:
        run = SweepFolder(self.folder).trial(_name(trial))
        if run.path.exists() and not run.is_over and not run.failure.exists():
            write_text_atomically(run.path / file, reason)
        self.ended()


def _name(trial: Any) -> str:
    """The name of the folder of a Tune trial, which is also its name in Tune."""
    return str(trial.config["trial"]["name"])


def _tuner(
    driver: Callable[..., Any], waiting: list[Trial], tuning: Tuning, folder: Path, callbacks: list[ray.tune.Callback]
) -> ray.tune.Tuner:
    # Keep the working folder of the driver, which relative paths of a configuration refer to.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output ignores verbose=0
    if tuning.base and tuning.searcher:
        experiments = possible_experiments(tuning.base, [], tuning.searcher.space)
        space: dict[str, Any] = {"trial": {"experiment": tuning.base.model_dump_json()}}
    else:
        experiments = [trial.experiment for trial in waiting]
        space = {"trial": ray.tune.grid_search([trial.for_tune() for trial in waiting])}
    return ray.tune.Tuner(
        ray.tune.with_resources(driver, {"CPU": DRIVER_CPUS}),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=_max_concurrent(experiments),
            num_samples=tuning.samples,
            search_alg=tuning.searcher,
            scheduler=tuning.scheduler,
            # A reused driver process saves the time of its imports. But it cannot stop its trial early: with a
            # scheduler, each trial therefore has its own process.
            reuse_actors=tuning.scheduler is None,
            trial_name_creator=_name,
            trial_dirname_creator=_name,  # the default is all settings of a trial, truncated to 130 characters
        ),
        run_config=ray.tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(SweepFolder(folder).tune),
            verbose=0,
            callbacks=callbacks,
            stop=tuning.stopper,
        ),
    )


def _max_concurrent(experiments: list[Experiment]) -> int:
    """The number of trials that fit the cluster at the same time.

    Raises:
        SepsceneError: when not even one trial fits.
    """
    fitting = fitting_trials(experiments, cluster_nodes())
    if not fitting:
        raise SepsceneError(
            "not even one trial with its driver fits the cluster: lower resources.separation_cpus or "
            "resources.trainer_cpus"
        )
    return fitting


def close_runs(found: list[Outcome], folder: Path, tracking_uri: str) -> None:
    """End the MLflow runs of unfinished trials: their processes may have died before they could do it."""
    for outcome in found:
        run_dir = SweepFolder(folder).trial(outcome.trial.name).path
        if outcome.status != "finished" and RunFolder(run_dir).mlflow.exists():
            tracker = Tracker(tracking_uri, "sepscene", run_dir)
            tracker.start("", {"status": outcome.status, "reason": outcome.reason}, {})
            tracker.send()
            for stage in reversed(tracker.stages()):  # the parent run last: it sends everything that is queued
                tracker.finish(stage, "FAILED" if outcome.status == "failed" else "KILLED")
