"""A reproduction at scale mini: every row with every seed, one after the other in this process.

Seeds are outermost, so that each finished seed is a complete table. A finished trial is a small JSON file and is not
run again. The report is made from these files after every trial, so it can be read, and the process cut, at any time.
Several processes may work on one study: each takes the next trial that no other has.
"""

import json
import time
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomCode
from sepscene.models.settings import Cnn14Config
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.mini.data import described, stores_of
from sepscene.orchestration.mini.trial import TrialRecord, run_trial
from sepscene.orchestration.presets import OF_COINCIDENCE, OWN, shipped_ladder
from sepscene.orchestration.records.environment import command_line, environment
from sepscene.orchestration.records.files import claimed, read_typed, write_whole
from sepscene.orchestration.records.results import Metric, ReproducedRun, ReproductionResults
from sepscene.orchestration.records.sweep_folder import StudyFolder
from sepscene.orchestration.reports.paper_tables import TWINS
from sepscene.orchestration.reports.reproduction_report import write_reproduction_report

UNTRAINED = "untrained"
PAPER_CLIPS = 2_000_000


def run_study(rows: list[Experiment], seeds: int, folder: Path, console: Console, hours: float | None = None) -> None:
    """Run what is not finished, and write the report after each trial.

    Args:
        rows: experiments of scale mini over the same data.
        seeds: of each row, 0 to seeds - 1.
        folder: of the study.
        console: shows the progress.
        hours: start no trial after so long; none goes on to the end.

    Raises:
        SepsceneError: for data, separators or settings that cannot be used.
    """
    torch.set_num_threads(1)
    _check_no_custom_code(rows)
    begin = time.monotonic()
    files = StudyFolder(folder)
    _check_same_study(rows, folder)
    planned = [
        (name, row.changed({"seed": seed}))
        for seed in range(seeds)
        for name, row in [(UNTRAINED, rows[0]), *((row.name, row) for row in rows)]
        if not _finished(folder, name, seed)
    ]
    if planned:
        train, test, processors = stores_of(rows, folder.parent, console)
    for number, (name, experiment) in enumerate(planned):
        if hours is not None and time.monotonic() - begin > 3600 * hours:
            break
        with claimed(files.running(name, experiment.seed)) as alone:
            if not alone or _finished(folder, name, experiment.seed):
                continue
            record = run_trial(experiment, train, test, processors, untrained=name == UNTRAINED)
            record.save(files.trial(name, experiment.seed))
        speed = f", {record.steps_per_second:.1f} steps per second" if record.steps else ""
        found = f"{record.metrics['shallow_map']:.3f}{speed}"
        console.print(f"{number + 1}/{len(planned)}  {name}, seed {experiment.seed}: {found}", highlight=False)
        write_results(rows[0], folder)
    write_results(rows[0], folder)


def read_records(folder: Path) -> list[TrialRecord]:
    """All finished trials of a study."""
    return [
        read_typed(path, TrialRecord, "delete it, and its trial is run again")
        for path in sorted(StudyFolder(folder).trials.glob("*.json"))
    ]


def write_results(base: Experiment, folder: Path) -> None:
    """reproduction.json and the report, from the trials that are finished."""
    records = read_records(folder)
    untrained = {record.seed: record for record in records if record.row == UNTRAINED}
    runs = [record for record in records if record.row != UNTRAINED]
    results = ReproductionResults(
        reproduction_id=folder.name,
        scale="mini",
        started=min((record.finished for record in records), default=datetime.now(UTC).isoformat(timespec="seconds")),
        seconds=sum(record.seconds for record in records),
        command=command_line(),
        differs=_differences(base, runs),
        runs=tuple(_reproduced(record, untrained.get(record.seed)) for record in runs),
        environment=environment(),
        data=described(base) | _left_out(records),
    )
    results.save(folder)
    write_reproduction_report(folder)


def _check_no_custom_code(rows: list[Experiment]) -> None:
    """A study stores log-mels and levels of channels, from separators that are folders.

    Raises:
        SepsceneError: a separator or a channel score is custom code.
    """
    parts = {f"separator.checkpoints.{name}": place for name, place in rows[0].separator.checkpoints.items()}
    parts |= {f"views.channel of {row.name}": row.views.channel for row in rows}
    own = [part for part, chosen in parts.items() if isinstance(chosen, CustomCode)]
    if own:
        raise SepsceneError(
            f"{own[0]} is custom code, which scale mini does not take: give the folder that a run keeps of a custom "
            "separator (RUN/ladder/NAME), and a rule as views.channel; or take another scale"
        )


def _left_out(records: list[TrialRecord]) -> dict[str, str]:
    """What all trials leave out, for the report; they share their clips."""
    notes = list(dict.fromkeys(note for record in records for note in record.left_out))
    return {"not evaluated": "; ".join(notes)} if notes else {}


def _check_same_study(rows: list[Experiment], folder: Path) -> None:
    """Refuse to go on with other settings: rows of one table must differ in nothing but what makes them rows.

    Raises:
        SepsceneError: names the parts of the configuration that differ from those that the folder was begun with.
    """
    shared = _shared_settings(rows)
    path = StudyFolder(folder).settings
    before = {"augmentations": [], **read_typed(path, dict[str, Any], "give another --id")} if path.exists() else {}
    differ = [part for part in shared if shared[part] != before.get(part, shared[part])]
    if differ:
        raise SepsceneError(
            f"{folder} was begun with other settings ({', '.join(differ)}; study.json has them): give the same ones, "
            "or another --id"
        )
    if shared != before:
        write_whole(path, json.dumps({**before, **shared}, indent=1))


def _shared_settings(rows: list[Experiment]) -> dict[str, Any]:
    """What all rows of a study have in common; what only rows with coincidence prediction have, where there are any."""
    tree = rows[0].model_dump(mode="json")
    parts = ("audio", "data", "front_end", "training", "evaluation", "views", "encoder", "objective")
    own = {*OWN, *OF_COINCIDENCE}
    shared: dict[str, Any] = {
        part: {key: value for key, value in tree[part].items() if f"{part}.{key}" not in own} for part in parts
    }
    shared["separators"] = {name: read_card(str(place)).digest for name, place in rows[0].separator.checkpoints.items()}
    general = ("use", "probability", "curriculum")
    sizes = tree["augmentations"].pop("specaugment", {})
    shared["specaugment"] = {key: value for key, value in sizes.items() if key not in general}
    shared["augmentations"] = [list(item) for item in tree["augmentations"].items()]  # their order counts
    del shared["objective"]["terms"]
    shared["objective"] |= rows[0].objective.short_forms
    for row in [row for row in rows if row.objective.alpha][:1]:
        short = [field for field in OF_COINCIDENCE if ".terms." not in field]
        shared["coincidence"] = {field: attrgetter(field)(row) for field in short}
    return shared


def _reproduced(record: TrialRecord, untrained: TrialRecord | None) -> ReproducedRun:
    return ReproducedRun(
        row=record.row,
        seed=record.seed,
        metric=_metric(record),
        untrained=_metric(untrained) if untrained else None,
        replicates=record.replicates,
        diagnostics=record.diagnostics,
    )


def _metric(record: TrialRecord) -> Metric:
    return Metric(
        value=record.metrics["shallow_map"],
        count=len(record.perceptrons),
        interval=f"mean of {len(record.perceptrons)} perceptrons",
    )


def _finished(folder: Path, row: str, seed: int) -> bool:
    """Whether the folder holds the row, under its own name or that which another table has for it."""
    return any(StudyFolder(folder).trial(name, seed).exists() for name in (row, TWINS.get(row, row)))


def _differences(base: Experiment, runs: list[TrialRecord]) -> tuple[str, ...]:
    """How all runs differ from the paper's."""
    steps = ", ".join(map(str, sorted({run.steps for run in runs})))
    clips = base.data.scenes_train if base.data.is_generated else "?"
    return (
        f"{clips} clips of {base.data.format} instead of about {PAPER_CLIPS:,} of AudioSet",
        f"global batch {base.training.global_batch} and {steps or '?'} steps; the paper's are not stated",
        f"{base.encoder.described} instead of {Cnn14Config().described}, on {base.front_end.mel_bands} bands every "
        f"{1000 * base.front_end.hop_samples // base.front_end.sample_rate} ms",
        "small separators that come with the package, of an STFT basis"
        if base.separator.checkpoints == shipped_ladder()
        else "separators that were given",
        "all seeds share the data and the separators",
    )
