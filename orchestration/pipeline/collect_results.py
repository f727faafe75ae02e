"""What a run's folder holds, gathered into its results: timings, the ledger's summary, the balance of its streams."""

import numpy as np

from sepscene.augment.synthetic.shared_events import shared_events_in_words
from sepscene.augment.synthetic.source_segments import read_sources
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.evaluation.compare import TEST_CLIPS
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.records.environment import environment
from sepscene.orchestration.records.files import read_text, read_typed_or
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import (
    EncoderResult,
    LedgerResult,
    ProcessorResult,
    RunResults,
    StageResult,
    read_metrics,
)
from sepscene.orchestration.records.run_folder import pretraining_stage
from sepscene.orchestration.training.throughput import Balance, balance_of, bottleneck, store_counts
from sepscene.tasks.datasets.readers import Manifest

SCENES_LISTENED_TO = 32
"""Whose sources say how often two crops share an event."""


def collect_results(
    run: Run,
    train: Manifest,
    test: Manifest,
    encoders: list[EncoderResult],
    processors: list[ProcessorResult],
    unread: int,
) -> RunResults:
    """The results of a run whose encoders and ladder are evaluated, from what its folder holds.

    Args:
        run: with its timings, metrics and ledger written.
        train, test: the clips of both splits; the same ones for cross-validation.
        encoders: the run's own first.
        processors: the checkpoints of the ladder.
        unread: clips that the evaluation could not read.
    """
    experiment = run.experiment
    files = run.files
    clips = len(train.clips) + (0 if experiment.data.by_folds else len(test.clips))
    timings = read_typed_or(files.timings, dict[str, float], {})
    metrics = read_metrics(files.path)
    balance = balance_of(metrics, pretraining_stage(experiment.views.pair))
    ledger = Ledger.from_json(read_text(files.ledger))
    return RunResults(
        run_id=files.path.name,
        experiment=experiment.name,
        scale=experiment.scale,
        table_row=experiment.table_row,
        seed=experiment.seed,
        started=read_text(files.started),
        seconds=sum(timings.values()),
        stages=_stages(timings, metrics),
        ladder=tuple(processors),
        encoders=tuple(encoders),
        ledger=LedgerResult.of(ledger),
        bottleneck=bottleneck(balance, experiment) if balance else "",
        environment=environment(),
        data={
            "data set": experiment.data.described,
            "training clips": str(len(train.clips)),
            "test clips": "the same, by cross-validation" if experiment.data.by_folds else str(len(test.clips)),
            "hours": f"{clips * experiment.audio.clip_seconds / 3600:.2f}",
            "manifest": train.digest()[:12],
            TEST_CLIPS: test.digest()[:12],
            **_shared_events(experiment, test),
        },
        left_out=_left_out(train, test, unread),
    )


def _left_out(train: Manifest, test: Manifest, unread: int) -> dict[str, int]:
    """What of the data set was not used, by reason; reasons without any are left out."""
    parts = {"clips": test} if train is test else {"training clips": train, "test clips": test}
    counts = {f"files: {entry.reason}": entry.count for entry in (train.survey.skipped if train.survey else ())}
    counts["clips that are listed, but whose sound is not there"] = len(train.absent)
    counts["clips that the evaluation could not read"] = unread
    for name, part in parts.items():
        counts[f"{name} without a label, in the evaluation only"] = part.unlabelled
    return {reason: count for reason, count in counts.items() if count}


def _shared_events(experiment: Experiment, test: Manifest) -> dict[str, str]:
    """How often two crops of a clip hear the same event; known of scenes that were written with their sources."""
    uris = test.clips["uri"].to_pylist()[:SCENES_LISTENED_TO] if experiment.data.format == "scenes" else []
    try:
        scenes = [read_sources(uri) for uri in uris]
    except OSError:
        return {}
    words = shared_events_in_words(scenes, experiment.views, experiment.audio.sample_rate) if scenes else ""
    return {"pairs that share an event": words} if words else {}


def _stages(timings: dict[str, float], metrics: list[dict[str, float | str]]) -> tuple[StageResult, ...]:
    """Every stage of the run, and below a streaming one what feeds its trainers."""
    stages: list[StageResult] = []
    for name, seconds in timings.items():
        records = [record for record in metrics if record["stage"] == name and "step" in record]
        waiting = [float(record["waiting_share"]) for record in records if "waiting_share" in record]
        rows = next((int(float(record["rows"])) for record in reversed(records) if "rows" in record), None)
        share = float(np.mean(waiting)) if waiting else None
        balance = balance_of(records, name)
        stages.append(
            StageResult(
                name=name,
                seconds=seconds,
                rows=rows,
                busy_share=balance.busy["trainers"] if balance else None,
                waiting_share=balance.waiting if balance else share,
                note=_store_note(records),
            )
        )
        if balance and rows is not None:
            stages += _feeding(name, seconds, rows, balance)
    return tuple(stages)


def _store_note(records: list[dict[str, float | str]]) -> str:
    """What the SeparatedStore gave to a stage: "store: 10,000 hits, 20 misses, 1 repairs"; empty without one."""
    counts = store_counts(records)
    return "store: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) if counts else ""


def _feeding(name: str, seconds: float, rows: int, balance: Balance) -> list[StageResult]:
    """Readers and separation actors of a streaming stage, which work for as long as it does, and what went through."""
    return [
        StageResult(
            name=f"{name}: {part}",
            seconds=seconds,
            rows=round(rows * _share(balance, part)),
            busy_share=balance.busy[part],
            bytes_out=round(rows * balance.bytes_per_second[part] / max(balance.rows_per_second, 1e-9)),
            note=f"{balance.queue_blocks[part]:.1f} blocks wait behind it",
        )
        for part in ("readers", "separation")
        if part in balance.busy
    ]


def _share(balance: Balance, part: str) -> float:
    """Share of the rows that pass through a part: separation is spared those from the store."""
    pace = balance.rows_per_second
    return balance.stage_rows_per_second.get(part, pace) / max(pace, 1e-9)
