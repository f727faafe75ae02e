"""Sweeps: one experiment with many settings of any fields, each with several seeds."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray.tune
from rich.console import Console

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.environment import command_line, environment
from sepscene.orchestration.records.mlflow_mirror import Tracker
from sepscene.orchestration.records.results import Metric, SweepResults, TrialResult, read_metrics
from sepscene.orchestration.records.run_folder import is_pretraining
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.reports.sweep_report import write_sweep_report
from sepscene.orchestration.sweeps.config import SweepConfig
from sepscene.orchestration.sweeps.run_trials import parent_run, prepare_shared, run_trials
from sepscene.orchestration.sweeps.schedulers import tuning_of
from sepscene.orchestration.sweeps.search_space import Space
from sepscene.orchestration.sweeps.trial import METRIC, held_seconds
from sepscene.orchestration.sweeps.trial_plan import (
    Trial,
    describe_tuning,
    plan_trials,
    possible_experiments,
    processors_of,
)
from sepscene.orchestration.sweeps.trial_status import Outcome


def sweep(
    config: SweepConfig,
    folder: Path,
    tracking_uri: str,
    console: Console,
    callbacks: Sequence[ray.tune.Callback] = (),
) -> SweepResults:
    """Run a sweep, or continue it; writes SWEEP/sweep.json and the report whenever a trial ends.

    Raises:
        SepsceneError: before anything starts, when the configuration refuses a field or value, or the folder contains
            another sweep.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.monotonic()
    base, space = config.checked()
    trials = plan_trials(config, base, space)
    config.save(folder)
    about = {"kind": "sweep", "sweep_id": folder.name, "experiment": base.name}
    with parent_run(tracking_uri, folder, about, _params(config), console) as (tracker, tags):
        shared = prepare_shared(base, _processors(base, trials, space), folder, tracking_uri, console, tags)
        trials = plan_trials(config, shared, space)
        tuning = tuning_of(config, space, shared, folder, begin)

        def write(found: list[Outcome]) -> SweepResults:
            results = SweepResults(
                sweep_id=folder.name,
                experiment=base.name,
                scale=base.scale,
                command=command_line(),
                started=started,
                seconds=time.monotonic() - begin,
                fields=tuple(space),
                scheduler=describe_tuning(config),
                trials=tuple(_result(outcome, folder) for outcome in found),
                environment=environment(),
                data={"data set": base.data.description},
            )
            results.save(folder)
            write_sweep_report(folder)
            return results

        results = write(run_trials(trials, folder, tracking_uri, console, write, tuning, tags, callbacks=callbacks))
        _log(tracker, results, folder)
    return results


def _processors(base: Experiment, trials: list[Trial], space: Space) -> set[str]:
    """The shared processors that any trial can need. The trials of Optuna are not known yet."""
    if "separator.checkpoints" in space:  # each trial has its own
        return set()
    combinations = space.get("views.combination", [])
    assert isinstance(combinations, list)  # the configuration refuses a range
    return processors_of(possible_experiments(base, trials, space)).union(*combinations)


def _params(config: SweepConfig) -> dict[str, Any]:
    plain = config.model_dump(mode="json", exclude={"over", "changes"})
    return {**plain, **{f"over.{field}": values for field, values in config.over.items()}}


def _log(tracker: Tracker, results: SweepResults, folder: Path) -> None:
    """Log the best metric, the numbers of trials and the report to the MLflow run of the sweep."""
    done = [trial.metrics[results.metric].value for trial in results.trials if trial.status == "finished"]
    if done:
        tracker.log_metrics("", {f"best_{results.metric}": max(done)})
    counts = Counter(trial.status for trial in results.trials)
    tracker.log_metrics("", {f"trials_{status.replace(' ', '_')}": float(n) for status, n in counts.items()})
    files = SweepFolder(folder)
    for path in (files.configuration, files.sweep, files.report_html, files.report_md):
        tracker.log_artifact("", path)


def _result(outcome: Outcome, folder: Path) -> TrialResult:
    results = outcome.results
    files = SweepFolder(folder)
    run_dir = files.trial(outcome.trial.name).path
    metrics = dict(results.encoders[0].metrics) if results else {}
    records = [record for record in read_metrics(run_dir) if is_pretraining(record["stage"])]
    validations = [float(record[METRIC]) for record in records if METRIC in record]
    if validations:
        metrics[METRIC] = Metric(value=validations[-1], interval="on held-out training clips, the last one")
    return TrialResult(
        name=outcome.trial.name,
        status=outcome.status,
        reason=outcome.reason,
        settings=outcome.trial.settings,
        seed=outcome.trial.seed,
        metrics=metrics,
        steps=max((int(record["step"]) for record in records if "step" in record), default=0),
        seconds=held_seconds(run_dir),
        run_dir=files.relative(run_dir),
    )
