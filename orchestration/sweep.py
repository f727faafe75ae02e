"""Sweeps: every combination of the given fields, or a random part of them, each over several seeds."""

import itertools
import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from models.config import SepsceneError
from orchestration.config import Experiment
from orchestration.environment import environment
from orchestration.results import Setting, SweepResults, TrialResult
from orchestration.sweep_report import write_sweep_report
from orchestration.trials import Outcome, Trial, run_trials, share

SHORT_NAMES = {
    "combination": "views.combination",
    "pair": "views.pair",
    "temperature": "objective.temperature",
    "alpha": "objective.alpha",
    "dim": "encoder.embedding_dim",
}


def parse_fields(texts: list[str]) -> dict[str, list[Any]]:
    """["temperature=0.1,0.2", "combination=S2,S2+N"] to dotted fields with their values.

    Raises:
        SepsceneError: for a text that is not FIELD=VALUE,VALUE,…
    """
    fields: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise SepsceneError(f"--over {text!r} must look like FIELD=VALUE,VALUE, e.g. temperature=0.1,0.2")
        field = SHORT_NAMES.get(name, name)
        parts = values.split(",")
        fields[field] = (
            [part.split("+") for part in parts] if field.endswith("combination") else [yaml.safe_load(p) for p in parts]
        )
    return fields


def plan_trials(base: Experiment, fields: dict[str, list[Any]], seeds: int, most: int | None) -> list[Trial]:
    """The trials of a sweep; every one is validated before any is started.

    Args:
        base: what is varied.
        fields: dotted field -> its values.
        seeds: runs of each setting, with seeds base.seed, base.seed + 1, …
        most: so many settings at most, a random choice (always the same) of all combinations; none takes all.

    Raises:
        SepsceneError: for an unknown field or a value that it refuses.
    """
    settings = [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]
    if most is not None and most < len(settings):
        settings = random.Random(base.seed).sample(settings, most)
    trials = []
    for setting in settings:
        shown: dict[str, Setting] = {k: tuple(v) if isinstance(v, list) else v for k, v in setting.items()}
        for seed in range(base.seed, base.seed + seeds):
            name = ",".join([*(f"{k.split('.')[-1]}={_short(v)}" for k, v in setting.items()), f"seed={seed}"])
            trials.append(Trial(name, base.changed({**setting, "seed": seed}), shown))
    return trials


def _short(value: Any) -> str:
    return "+".join(value) if isinstance(value, list) else str(value).replace("/", "_")


def sweep(
    base: Experiment,
    fields: dict[str, list[Any]],
    folder: Path,
    tracking_uri: str,
    console: Console,
    seeds: int = 1,
    most: int | None = None,
    hours: float | None = None,
) -> SweepResults:
    """Run a sweep to its end, or go on with it; writes SWEEP/sweep.json and its report as trials end.

    Raises:
        SepsceneError: for fields or values that the configuration refuses; before anything starts.
    """
    planned = plan_trials(base, fields, seeds, most)
    processors = {
        name for t in planned if t.experiment.views.pair != "mix-mix" for name in t.experiment.views.combination
    }
    shared = share(base, processors, folder, tracking_uri, console)
    trials = plan_trials(shared, fields, seeds, most)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()

    def write(found: list[Outcome]) -> SweepResults:
        results = SweepResults(
            sweep_id=folder.name,
            experiment=base.name,
            scale=base.scale,
            started=started,
            seconds=time.monotonic() - clock,
            fields=tuple(fields),
            trials=tuple(_result(outcome) for outcome in found),
            environment=environment(),
            data={"data set": f"{base.data.format} {base.data.root or ''}".strip()},
        )
        results.save(folder)
        write_sweep_report(folder)
        return results

    return write(run_trials(trials, folder, tracking_uri, console, write, hours))


def _result(outcome: Outcome) -> TrialResult:
    results = outcome.results
    return TrialResult(
        name=outcome.trial.name,
        status="finished" if results else "failed" if outcome.reason else "unfinished",
        reason=outcome.reason,
        settings=outcome.trial.settings,
        seed=outcome.trial.seed,
        figures=results.encoders[0].figures if results else {},
        seconds=results.seconds if results else 0.0,
        run_dir=f"trials/{outcome.trial.name}",
    )
