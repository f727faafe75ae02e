"""A reproduction at scale mini: every row with every seed, one after the other in this process.

The outer loop is over seeds, so that each finished seed gives a complete table. A finished trial is a small JSON file
and is not run again. The report is written from these files after every trial, so it can be read, and the process
interrupted, at any time. Several processes can work on one study: each takes the next trial that no other process has
claimed.
"""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomCode
from sepscene.models.settings import Cnn14Config
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.mini.data import LogMelStore, describe_data, prepare_stores
from sepscene.orchestration.mini.training import NonFiniteError, check_supported
from sepscene.orchestration.mini.trial import TrialRecord, run_trial
from sepscene.orchestration.presets import COINCIDENCE_FIELDS, ROW_FIELDS, shipped_ladder
from sepscene.orchestration.records.environment import command_line, environment
from sepscene.orchestration.records.files import claimed, read_typed, write_text_atomically
from sepscene.orchestration.records.results import Metric, ReproducedRun, ReproductionResults
from sepscene.orchestration.records.sweep_folder import StudyFolder
from sepscene.orchestration.reports.reproduction_report import write_reproduction_report
from sepscene.tasks.paper.claims import OTHER_NAMES, PAPER_CLIPS

UNTRAINED = "untrained"


def run_study(
    rows: list[Experiment], seeds: int, folder: Path, console: Console, hours: float | None = None
) -> dict[str, str]:
    """Run the trials that are not finished, and write the report after each of them.

    A trial whose loss is not finite does not end the study. If the study is continued, it is run again.

    Args:
        rows: experiments of scale mini over the same data.
        seeds: number of seeds of each row, from 0 to seeds - 1.
        hours: start no trial after this many hours; None: no limit.

    Returns:
        The trials that have failed, with the reason.

    Raises:
        SepsceneError: when data, separators or settings cannot be used.
    """
    torch.set_num_threads(1)
    _check_no_custom_code(rows)
    for row in rows:
        check_supported(row)
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
        train, test = prepare_stores(rows, folder.parent, console)
    for number, (name, experiment) in enumerate(planned):
        if hours is not None and time.monotonic() - begin > 3600 * hours:
            break
        with claimed(files.running(name, experiment.seed)) as acquired:
            if not acquired or _finished(folder, name, experiment.seed):
                continue
            found = _run(experiment, train, test, name, files)
        console.print(f"{number + 1}/{len(planned)}  {name}, seed {experiment.seed}: {found}", highlight=False)
        write_results(rows[0], folder)
    write_results(rows[0], folder)
    return read_failures(folder)


def _run(experiment: Experiment, train: LogMelStore, test: LogMelStore, name: str, files: StudyFolder) -> str:
    """Run a trial and save its record or why it failed; returns what to print."""
    failure = files.failure(name, experiment.seed)
    try:
        record = run_trial(experiment, train, test, untrained=name == UNTRAINED)
    except NonFiniteError as error:
        write_text_atomically(failure, str(error))
        return f"failed: {error}"
    record.save(files.trial(name, experiment.seed))
    failure.unlink(missing_ok=True)
    speed = f", {record.steps_per_second:.1f} steps per second" if record.steps else ""
    return f"{record.metrics['shallow_map']:.3f}{speed}"


def read_failures(folder: Path) -> dict[str, str]:
    """The failed trials of a study, with the reason."""
    return {path.stem: path.read_text() for path in StudyFolder(folder).written_failures()}


def read_records(folder: Path) -> list[TrialRecord]:
    """All finished trials of a study."""
    return [
        read_typed(path, TrialRecord, "delete it, and the trial will be run again")
        for path in StudyFolder(folder).written_trials()
    ]


def write_results(base: Experiment, folder: Path) -> None:
    """Write reproduction.json and the report from the finished trials."""
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
        failed=read_failures(folder),
        environment=environment(),
        data=describe_data(base) | _left_out(records),
    )
    results.save(folder)
    write_reproduction_report(folder)


def _check_no_custom_code(rows: list[Experiment]) -> None:
    """Check that no separator and no channel score is custom code: a study stores log-mels and levels only."""
    parts = {f"separator.checkpoints.{name}": place for name, place in rows[0].separator.checkpoints.items()}
    parts |= {f"views.channel of {row.name}": row.views.channel for row in rows}
    custom = [part for part, chosen in parts.items() if isinstance(chosen, CustomCode)]
    if custom:
        raise SepsceneError(
            f"{custom[0]} is custom code, which scale mini does not support: for a separator, give the folder that a "
            "run saved (RUN/ladder/NAME); for views.channel, give a rule; or use another scale"
        )


def _left_out(records: list[TrialRecord]) -> dict[str, str]:
    """The clips and classes that the trials leave out, for the report; all trials share their clips."""
    notes = list(dict.fromkeys(note for record in records for note in record.left_out))
    return {"not evaluated": "; ".join(notes)} if notes else {}


def _check_same_study(rows: list[Experiment], folder: Path) -> None:
    """Check that a study is continued with its settings; rows differ only in `ROW_FIELDS` and `COINCIDENCE_FIELDS`."""
    shared = _shared_settings(rows)
    path = StudyFolder(folder).settings
    before = {"augmentations": [], **read_typed(path, dict[str, Any], "give another --id")} if path.exists() else {}
    differ = [part for part in shared if shared[part] != before.get(part, shared[part])]
    if differ:
        raise SepsceneError(
            f"{folder} was started with other settings ({', '.join(differ)}; see its study.json): use the same "
            "settings, or another --id"
        )
    if shared != before:
        write_text_atomically(path, json.dumps({**before, **shared}, indent=1))


def _shared_settings(rows: list[Experiment]) -> dict[str, Any]:
    """The settings that all rows of a study share, and those of coincidence prediction if any row has it."""
    tree = rows[0].model_dump(mode="json")
    parts = ("audio", "data", "front_end", "training", "evaluation", "views", "encoder", "objective")
    row_fields = {*ROW_FIELDS, *COINCIDENCE_FIELDS}
    shared: dict[str, Any] = {
        part: {key: value for key, value in tree[part].items() if f"{part}.{key}" not in row_fields} for part in parts
    }
    shared["separators"] = {name: read_card(str(place)).digest for name, place in rows[0].separator.checkpoints.items()}
    general = ("use", "probability", "curriculum")
    sizes = tree["augmentations"].pop("specaugment", {})
    shared["specaugment"] = {key: value for key, value in sizes.items() if key not in general}
    shared["augmentations"] = [list(item) for item in tree["augmentations"].items()]  # a list: their order matters
    del shared["objective"]["terms"]
    shared["objective"] |= rows[0].objective.short_forms
    with_coincidence = [row for row in rows if row.objective.alpha]
    if with_coincidence:
        fields = [field for field in COINCIDENCE_FIELDS if ".terms." not in field]
        shared["coincidence"] = {field: with_coincidence[0].value_of(field) for field in fields}
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
    """Whether the row is finished, under its own name or under its name in another table."""
    return any(StudyFolder(folder).trial(name, seed).exists() for name in (row, OTHER_NAMES.get(row, row)))


def _differences(base: Experiment, runs: list[TrialRecord]) -> tuple[str, ...]:
    """How all runs differ from those of the paper."""
    steps = ", ".join(map(str, sorted({run.steps for run in runs})))
    clips = next((run.ledger.rows // base.training.epochs for run in runs if run.ledger), "?")
    return (
        f"{clips} clips of {base.data.format} instead of about {PAPER_CLIPS:,} of AudioSet",
        f"global batch {base.training.global_batch} and {steps or '?'} steps; the paper's are not stated",
        f"{base.encoder.description} instead of {Cnn14Config().description}, on {base.front_end.mel_bands} bands every "
        f"{1000 * base.front_end.hop_samples // base.front_end.sample_rate} ms",
        "the small separators that come with the package, with an STFT basis"
        if base.separator.checkpoints == shipped_ladder()
        else "separators provided by the user",
        "all seeds share the data and the separators",
    )
