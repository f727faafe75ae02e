"""A reproduction at scale mini: every row with every seed, one after the other in this process.

Seeds are outermost, so that each finished seed is a complete table. A finished trial is a small JSON file and is not
run again. The report is made from these files after every trial, so it can be read, and the process cut, at any time.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch
from rich.console import Console

from sepscene.augment.synthetic.scenes import PROFILES, generate_scene, write_scenes
from sepscene.augment.synthetic.shared_events import shared_events_in_words
from sepscene.augment.views import Views
from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Data, Experiment
from sepscene.orchestration.mini.logmel_store import LogMelStore
from sepscene.orchestration.mini.trial import TrialRecord, run_trial
from sepscene.orchestration.records.environment import command_line, environment
from sepscene.orchestration.records.files import write_whole
from sepscene.orchestration.records.results import Metric, ReproducedRun, ReproductionResults
from sepscene.orchestration.records.sweep_folder import StudyFolder
from sepscene.orchestration.reports.paper_tables import TWINS
from sepscene.orchestration.reports.reproduction_report import write_reproduction_report
from sepscene.tasks.datasets.readers import Manifest, read_manifest

UNTRAINED = "untrained"
PAPER_CLIPS = 2_000_000
SCENES_LISTENED_TO = 16
"""Scenes of the study's kind whose sources say how often two crops share an event."""


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
    begin = time.monotonic()
    _check_same_study(rows[0], folder)
    planned = [(row, seed) for seed in range(seeds) for row in rows if not _finished(folder, row.name, seed)]
    if planned:
        train, test, processors = stores_of(rows, folder, console)
    for number, (row, seed) in enumerate(planned):
        if hours is not None and time.monotonic() - begin > 3600 * hours:
            break
        experiment = row.changed({"seed": seed})
        if not StudyFolder(folder).trial(UNTRAINED, seed).exists():
            fresh = run_trial(experiment, train, test, processors, untrained=True)
            fresh.save(StudyFolder(folder).trial(UNTRAINED, seed))
        record = run_trial(experiment, train, test, processors)
        record.save(StudyFolder(folder).trial(row.name, seed))
        found = f"{record.metrics['shallow_map']:.3f}, {record.steps_per_second:.1f} steps per second"
        console.print(f"{number + 1}/{len(planned)}  {row.name}, seed {seed}: {found}", highlight=False)
        write_results(rows[0], folder)
    write_results(rows[0], folder)


def read_records(folder: Path) -> list[TrialRecord]:
    """All finished trials of a study."""
    return [
        TrialRecord.model_validate_json(path.read_text()) for path in sorted(StudyFolder(folder).trials.glob("*.json"))
    ]


def write_results(base: Experiment, folder: Path) -> ReproductionResults:
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
        data=_described(base),
    )
    results.save(folder)
    write_reproduction_report(folder)
    return results


def _described(base: Experiment) -> dict[str, str]:
    """The data, as the report says it."""
    data = base.data
    if not _generated(data):
        return {"data set": data.described}
    return {
        "data set": f"{data.described} ({data.scenes_profile})",
        "training clips": str(data.scenes_train),
        "test clips": str(data.scenes_test),
        "pairs that share an event": _shared_events(data.scenes_profile, base.views, base.audio.sample_rate),
    }


@cache
def _shared_events(profile: str, views: Views, sample_rate: int) -> str:
    scenes = [generate_scene(0, index, PROFILES[profile]).sources_ST for index in range(SCENES_LISTENED_TO)]
    return shared_events_in_words(scenes, views, sample_rate)


def _check_same_study(base: Experiment, folder: Path) -> None:
    """Refuse to go on with other settings: rows of one table must differ in nothing but what makes them rows.

    Raises:
        SepsceneError: names the parts of the configuration that differ from those that the folder was begun with.
    """
    tree = base.model_dump(mode="json")
    shared = {part: tree[part] for part in ("audio", "data", "front_end", "specaugment", "training", "evaluation")}
    shared["objective"] = {k: v for k, v in tree["objective"].items() if k not in ("alpha", "similarity")}
    shared["separators"] = {name: read_card(place).digest for name, place in base.separator.checkpoints.items()}
    path = StudyFolder(folder).settings
    if not path.exists():
        write_whole(path, json.dumps(shared, indent=1))
        return
    before = json.loads(path.read_text())
    differ = [part for part in shared if shared[part] != before.get(part)]
    if differ:
        raise SepsceneError(
            f"{folder} was begun with other settings ({', '.join(differ)}; study.json has them): give the same ones, "
            "or another --id"
        )


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


def _processors(row: Experiment) -> tuple[str, ...]:
    return row.views.combination if row.views.separates else ()


def _generated(data: Data) -> bool:
    return data.format == "scenes" and data.root is None


def stores_of(
    rows: list[Experiment], folder: Path, console: Console
) -> tuple[LogMelStore, LogMelStore, dict[str, str]]:
    """The log-mels of the training clips with all channels that any row needs, those of the test clips, and the
    separators' folders by name."""
    base, backgrounds = rows[0], 1 + any(row.views.background == "exchanged" for row in rows)
    train, test = _manifests(base, folder, backgrounds, console)
    processors = {name: base.separator.checkpoints[name] for row in rows for name in _processors(row)}
    train_store, test_store = (LogMelStore(StudyFolder(folder).logmels, base, manifest) for manifest in (train, test))
    show = _counter(console)
    train_store.fill(processors, backgrounds, show)
    test_store.fill({}, progress=show)
    return train_store, test_store, processors


def _manifests(base: Experiment, folder: Path, backgrounds: int, console: Console) -> tuple[Manifest, Manifest]:
    data = base.data
    if not _generated(data):
        manifest = read_manifest(data.format, str(data.root))
        return manifest.select(*data.train), manifest.select(*data.test)
    root = StudyFolder(folder).scenes
    for split, count, versions in (("train", data.scenes_train, backgrounds), ("test", data.scenes_test, 1)):
        mark = StudyFolder(folder).scenes_done(split)
        if not mark.exists():
            console.print(f"generating {count} scenes for {split}")
            write_scenes(root, count, 0, split, PROFILES[data.scenes_profile], False, versions)
            mark.touch()
    manifest = read_manifest("scenes", str(root))
    return manifest.select("train"), manifest.select("test")


def _counter(console: Console) -> Callable[[str, int, int], None]:
    def show(part: str, done: int, clips: int) -> None:
        if done == clips or done % 256 == 0:
            console.print(f"log-mels of {part}: {done} of {clips} clips", highlight=False)

    return show


def _differences(base: Experiment, runs: list[TrialRecord]) -> tuple[str, ...]:
    """How all runs differ from the paper's."""
    steps = ", ".join(map(str, sorted({run.steps for run in runs})))
    clips = base.data.scenes_train if _generated(base.data) else "?"
    return (
        f"{clips} clips of {base.data.format} instead of about {PAPER_CLIPS:,} of AudioSet",
        f"global batch {base.training.global_batch} and {steps or '?'} steps; the paper's are not stated",
        f"CNN14 with widths {base.encoder.widths} instead of 64 … 2048, on {base.front_end.mel_bands} bands every "
        f"{1000 * base.front_end.hop_samples // base.front_end.sample_rate} ms",
        "small separators that were trained before, of an STFT basis",
        "all seeds share the data and the separators",
    )
