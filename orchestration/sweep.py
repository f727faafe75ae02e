"""Sweeps: an experiment over combinations, temperatures, task weights or any other fields, each over several seeds."""

import itertools
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from models.config import SepsceneError
from orchestration.config import Experiment
from orchestration.environment import command_line, environment
from orchestration.results import Figure, SweepResults, TrialResult, read_metrics
from orchestration.schedulers import tuning_of
from orchestration.search import Range, Space, drawn, setting_name, shown_setting
from orchestration.sweep_config import FILE, SweepConfig, load_sweep
from orchestration.sweep_report import write_sweep_report
from orchestration.tracking import Tracker
from orchestration.trial_driver import METRIC, held_seconds
from orchestration.trials import Outcome, Trial, run_trials, share


def plan_trials(config: SweepConfig, base: Experiment, space: Space) -> list[Trial]:
    """The trials of a sweep, each validated before any is started; none where Optuna will choose them.

    Args:
        config: how settings are chosen.
        base: what they change.
        space: checked, as `SweepConfig.checked` returns it.

    Raises:
        SepsceneError: for a combination of values that the configuration refuses.
    """
    if config.search == "optuna":
        return []
    if config.scheduler == "pbt":
        return _population(config, base, space)
    trials = []
    for setting in _settings(config, base, space):
        for seed in range(base.seed, base.seed + config.seeds):
            name = f"{setting_name(setting)},seed={seed}"
            trials.append(Trial(name, base.changed({**setting, "seed": seed}), shown_setting(setting), seed))
    return trials


def _settings(config: SweepConfig, base: Experiment, space: Space) -> list[dict[str, Any]]:
    most = config.budget.trials
    if config.search == "random":
        return drawn(space, most or 1, base.seed)
    lists = {field: values for field, values in space.items() if not isinstance(values, Range)}
    settings = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    if most is not None and most < len(settings):
        raise SepsceneError(
            f"the grid has {len(settings)} settings, more than budget.trials {most}: take --search random for so many "
            "of them by chance, or raise the budget"
        )
    return settings


def _population(config: SweepConfig, base: Experiment, space: Space) -> list[Trial]:
    """Members that start with settings at random and the same seed, so that any can go on with another's weights."""
    return [
        Trial(f"member={n}", base.changed(starts), shown_setting(starts), base.seed, population=starts)
        for n, starts in enumerate(drawn(space, config.budget.trials or 1, base.seed))
    ]


def sweep(config: SweepConfig, folder: Path, tracking_uri: str, console: Console) -> SweepResults:
    """Run a sweep to its end, or go on with it; writes SWEEP/sweep.json and its report as trials end.

    Raises:
        SepsceneError: for fields or values that the configuration refuses, or a folder that holds another sweep;
            before anything starts.
    """
    base, space = config.checked()
    trials = plan_trials(config, base, space)
    config.save(folder)
    tracker = Tracker(tracking_uri, "sepscene", folder)
    tracker.start({"kind": "sweep", "sweep_id": folder.name, "experiment": base.name}, _params(config))
    tags = {"sweep_id": folder.name, **({"mlflow.parentRunId": run} if (run := tracker.run_id()) else {})}
    shared = share(base, _processors(base, trials, space), folder, tracking_uri, console, tags)
    trials = plan_trials(config, shared, space)
    tuning = tuning_of(config, space, shared.model_dump(mode="json"), folder)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()

    def write(found: list[Outcome]) -> SweepResults:
        results = SweepResults(
            sweep_id=folder.name,
            experiment=base.name,
            scale=base.scale,
            command=command_line(),
            started=started,
            seconds=time.monotonic() - clock,
            fields=tuple(space),
            scheduler=in_words(config),
            trials=tuple(_result(outcome, folder) for outcome in found),
            environment=environment(),
            data={"data set": f"{base.data.format} {base.data.root or ''}".strip()},
        )
        results.save(folder)
        write_sweep_report(folder)
        return results

    try:
        results = write(run_trials(trials, folder, tracking_uri, console, write, tuning, tags))
    except BaseException:
        tracker.finish("", "KILLED")
        raise
    _finish(tracker, results, folder)
    return results


def _processors(base: Experiment, trials: list[Trial], space: Space) -> set[str]:
    """What any trial may need of the ladder."""
    tried = [trial.experiment for trial in trials if trial.experiment] or [base]
    names = {name for e in tried if e.views.pair != "mix-mix" for name in e.views.combination}
    combinations = space.get("views.combination", [])
    return names | {name for names in combinations if isinstance(combinations, list) for name in names}


def _params(config: SweepConfig) -> dict[str, Any]:
    plain = config.model_dump(mode="json", exclude={"over", "changes"})
    return {**plain, **{f"over.{field}": values for field, values in config.over.items()}}


def _finish(tracker: Tracker, results: SweepResults, folder: Path) -> None:
    """The best figures and the report on the sweep's own run."""
    done = [trial.figures[results.figure].value for trial in results.trials if trial.status == "finished"]
    if done:
        tracker.log_figures("", {f"best_{results.figure}": max(done)})
    counts = {status: sum(t.status == status for t in results.trials) for status in {t.status for t in results.trials}}
    tracker.log_figures("", {f"trials_{status.replace(' ', '_')}": float(n) for status, n in counts.items()})
    for name in (FILE, "sweep.json", "report.html", "report.md"):
        tracker.log_artifact("", folder / name)
    tracker.finish("")


def find_sweep(storage: Path, config: SweepConfig) -> Path:
    """The newest folder of the storage that holds this sweep.

    Raises:
        SepsceneError: when there is none.
    """
    for path in sorted(storage.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if load_sweep(path).same_as() == config.same_as():
            return path.parent
    raise SepsceneError(f"{storage} holds no sweep with these arguments; leave --resume away, or name it with --id")


def in_words(config: SweepConfig) -> str:
    """What the report says of how settings were chosen and trials stopped."""
    schedule = config.schedule
    chosen = {
        "grid": "",
        "random": "Settings were drawn at random.",
        "optuna": "Optuna (TPE) chose the settings by the validation k-NN mAP of the trials before.",
    }[config.search]
    acted = {
        "none": "",
        "asha": f"ASHA stopped trials by their validation k-NN mAP: from {schedule.grace_percent:g} % of the rows on, "
        f"at every {schedule.keep_one_in:g}-fold, the best one in {schedule.keep_one_in:g} went on.",
        "pbt": f"Population based training: every {schedule.perturb_percent:g} % of the rows, members in the last "
        "quarter by validation k-NN mAP took over the weights of one in the first and changed its settings; "
        "settings are those at the end.",
    }[config.scheduler]
    return f"{chosen} {acted}".strip()


def _result(outcome: Outcome, folder: Path) -> TrialResult:
    results, run_dir = outcome.results, folder / "trials" / outcome.trial.name
    figures = dict(results.encoders[0].figures) if results else {}
    records = [record for record in read_metrics(run_dir) if str(record["stage"]).startswith("pretrain")]
    validations = [float(record[METRIC]) for record in records if METRIC in record]
    if validations:
        figures[METRIC] = Figure(value=validations[-1], interval="of held-out training clips, the last one")
    return TrialResult(
        name=outcome.trial.name,
        status=outcome.status,
        reason=outcome.reason,
        settings=outcome.trial.settings,
        seed=outcome.trial.seed,
        figures=figures,
        steps=max((int(record["step"]) for record in records if "step" in record), default=0),
        seconds=held_seconds(run_dir),
        run_dir=f"trials/{outcome.trial.name}",
    )
