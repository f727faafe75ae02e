"""The last stage of a run: evaluates its encoder, the baselines and the ladder, and collects the results.

It trains nothing: all encoders are made before.

Shapes: N clips.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
from rich.table import Table

from sepscene.augment.audio import ClipError
from sepscene.augment.synthetic.shared_events import describe_shared_events
from sepscene.augment.synthetic.sources import read_sources
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import update_card
from sepscene.models.trust import trust_variables
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.evaluation.compare import TEST_CLIPS
from sepscene.orchestration.evaluation.embed_manifest import embed_manifests
from sepscene.orchestration.evaluation.scoring import score_encoder, score_processors
from sepscene.orchestration.pipeline.run import Run, named_parts
from sepscene.orchestration.records.environment import environment
from sepscene.orchestration.records.files import read_text, read_typed_or
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import (
    EncoderResult,
    LedgerResult,
    Metric,
    ProcessorResult,
    RunResults,
    StageResult,
    read_metrics,
)
from sepscene.orchestration.records.run_folder import pretraining_stage
from sepscene.orchestration.reports.listening_data import listening_page
from sepscene.orchestration.reports.run_report import write_report
from sepscene.orchestration.runtime.placement import actor_demand
from sepscene.orchestration.training.throughput import balance_of, bottleneck, store_counts, waiting_share
from sepscene.tasks.datasets.readers import Manifest

STAGE = "evaluate"
HEADLINES = ("shallow_map", "qbe_map", "linear_map")
SHARED_EVENT_SCENES = 32
"""Number of scenes from whose sources the share of pairs with a common event is estimated."""


def evaluate_run(run: Run, bundles: Mapping[str, Path], ladder: dict[str, str]) -> RunResults:
    """Evaluate the run's encoder and its baselines, write results.json and the report, and log both.

    Args:
        bundles: name of each encoder -> folder of its bundle (`encoders_of`); the run's own encoder is the first.
        ladder: processor name -> folder, evaluated on held-out mixtures; empty: only the encoders are evaluated.
    """
    experiment = run.experiment
    train, test = run.manifests
    scores = _scores_of_ladder(ladder, test, experiment) if ladder else None
    run.record_inputs(ladder, training=train, evaluation=test)
    parts = (train,) if experiment.data.by_folds else (train, test)
    clips = sum(len(part.clips) for part in parts)
    with run.stage(STAGE, "evaluate", clips + len(bundles) + len(ladder)):
        embedded = embed_manifests(bundles, parts, experiment, run.advance)
        encoders = []
        for name in bundles:
            h = [part[name] for part in embedded]
            encoders.append(score_encoder(name, h[0], h[-1], experiment, run.folder))
            run.advance(clips + len(encoders))
        processors = ray.get(scores) if scores else []
        run.advance(clips + len(encoders) + len(ladder))
        if ladder:
            evaluated = encoders[0].name if encoders[0].metrics else None
            listening_page(run.folder, test, experiment.audio, ladder, processors, evaluated, has_report=True)
    unread = [len(part) - len(h[encoders[0].name].manifest) for part, h in zip(parts, embedded, strict=True)]
    results = _collect_results(run, encoders, processors, sum(unread))
    results.save(run.folder)
    metrics = {f"{e.name}/{name}": metric.value for e in encoders for name, metric in e.metrics.items()}
    run.tracker.log_metrics(STAGE, metrics)
    run.tracker.log_metrics("", {name: metric.value for name, metric in encoders[0].metrics.items()})
    for encoder in encoders:
        card_metrics = {name: metric.model_dump() for name, metric in encoder.metrics.items()}
        update_card(bundles[encoder.name], {"metrics": card_metrics})
        if encoder.name != "untrained":
            run.publish(encoder.name, bundles[encoder.name])
    files = run.files
    _log_files(run, files.results, *write_report(run.folder), files.listening_page, files.sounds, files.plots)
    return results


def score_ladder(run: Run, ladder: dict[str, str]) -> None:
    """Evaluate a ladder that many trials share, and write its listening page, RUN/listen.html."""
    test = run.manifests[1]
    with run.stage("ladder", "listen to the ladder", len(ladder) + 1):
        processors = ray.get(_scores_of_ladder(ladder, test, run.experiment))
        run.advance(len(ladder))
        page = listening_page(run.folder, test, run.experiment.audio, ladder, processors)
        _log_files(run, page, run.files.sounds)


def _log_files(run: Run, *paths: Path) -> None:
    """Log files and folders of the run to MLflow, each under its own name; those that do not exist are skipped."""
    for path in paths:
        if path.exists():
            run.tracker.log_artifact("", path, path.name if path.is_dir() else None)


def _scores_of_ladder(
    ladder: Mapping[str, str], test: Manifest, experiment: Experiment
) -> "ray.ObjectRef[list[ProcessorResult]]":
    """The metrics of a whole ladder, computed by a Ray task on a CPU of the nodes for separation actors."""
    clips = test.clips.slice(0, 2 * experiment.evaluation.separator_mixtures)
    demand = replace(actor_demand(experiment.resources), gpus=0.0, accelerator=None)
    options = {"runtime_env": {"env_vars": trust_variables()}, **demand.ray_options()}
    return ray.remote(score_processors).options(**options).remote(ladder, replace(test, clips=clips), experiment)


def _collect_results(
    run: Run, encoders: list[EncoderResult], processors: list[ProcessorResult], unread: int
) -> RunResults:
    """The results of a run, from the evaluation and from the timings, metrics and ledger in its folder.

    Args:
        unread: number of clips that the evaluation could not read.
    """
    train, test = run.manifests
    experiment = run.experiment
    files = run.files
    clips = len(train.clips) + (0 if experiment.data.by_folds else len(test.clips))
    timings = read_typed_or(files.timings, dict[str, float], {})
    metrics = read_metrics(files.path)
    balance = balance_of(metrics, pretraining_stage(experiment.views.pair))
    ledger = Ledger.load(files.ledger)
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
            "data set": experiment.data.description,
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
    """Numbers of files and clips of the data set that were not used, by reason."""
    counts = {f"files: {entry.reason}": entry.count for entry in train.skipped}
    counts["listed clips without an audio file"] = len(train.absent)
    counts["clips that the evaluation could not read"] = unread
    for name, part in named_parts(train, test).items():
        counts[f"{name} without a label, in the evaluation only"] = part.unlabelled
    return {reason: count for reason, count in counts.items() if count}


def _shared_events(experiment: Experiment, test: Manifest) -> dict[str, str]:
    """How often two crops of a clip contain the same event; only for scenes that were written with their sources."""
    uris = test.clips["uri"].to_pylist()[:SHARED_EVENT_SCENES] if experiment.data.format == "scenes" else []
    try:
        scenes = [read_sources(uri) for uri in uris]
    except ClipError:
        return {}
    share = describe_shared_events(scenes, experiment.views, experiment.audio.sample_rate) if scenes else ""
    return {"pairs that share an event": share} if share else {}


def _stages(timings: dict[str, float], metrics: list[dict[str, float | str]]) -> tuple[StageResult, ...]:
    """Every stage of the run; after a streaming stage, its readers and separation actors."""
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
                busy_share=balance.get("trainers/busy"),
                waiting_share=waiting_share(balance) if balance else share,
                note=_store_note(records),
            )
        )
        if balance and rows is not None:
            stages += _stream_stages(name, seconds, rows, balance)
    return tuple(stages)


def _store_note(records: list[dict[str, float | str]]) -> str:
    """The counts of the SeparatedStore: "store: 10,000 hits, 20 misses, 1 repairs"; empty without a store."""
    counts = store_counts(records)
    return "store: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) if counts else ""


def _stream_stages(name: str, seconds: float, rows: int, balance: Mapping[str, float]) -> list[StageResult]:
    """Readers and separation actors of a streaming stage, which run for the whole time of the stage."""
    rate = max(balance["rows_per_second"], 1e-9)
    return [
        StageResult(
            name=f"{name}: {part}",
            seconds=seconds,
            rows=round(rows * balance[f"{part}/rows_per_second"] / rate),  # separation: without rows from the store
            busy_share=balance[f"{part}/busy"],
            bytes_out=round(rows * balance[f"{part}/bytes_per_second"] / rate),
            note=f"{balance[f'{part}/queue_blocks']:.1f} blocks in its output queue",
        )
        for part in ("readers", "separation")
        if f"{part}/busy" in balance
    ]


def print_summary(run: Run) -> None:
    """Print the results, where they are, and what to do next."""
    try:
        results = RunResults.load(run.folder)
    except SepsceneError:
        run.console.print(f"encoder       {run.files.encoder}", soft_wrap=True)
        run.console.print(f"evaluate it   sepscene evaluate {run.folder}", soft_wrap=True)
        return
    table = Table(title=f"{results.experiment} ({results.scale}), {results.seconds:.0f} s")
    names = [name for name in HEADLINES if name in results.encoders[0].metrics]
    table.add_column("encoder", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_map", " mAP").replace("qbe", "query by ex."), justify="right", no_wrap=True)
    for encoder in results.encoders:
        table.add_row(encoder.name, *(_cell(encoder.metrics.get(name)) for name in names))
    run.console.print(table)
    run.console.print(f"report        {run.files.report_html}", soft_wrap=True)
    if run.files.listening_page.exists():
        run.console.print(f"listen        {run.files.listening_page}", soft_wrap=True)
    run.console.print(f"encoder       {run.files.encoder}", soft_wrap=True)
    run.console.print(f"embed sounds  sepscene embed {run.folder} FILES --out embeddings.parquet", soft_wrap=True)
    run.console.print(f"MLflow UI     sepscene ui {run.folder}", soft_wrap=True)
    if run.tracker.unsent:
        fault = run.tracker.fault or "it does not respond"
        message = f"MLflow does not have all results ({fault}); send the rest later: sepscene sync {run.folder}"
        run.console.print(message, style="yellow", soft_wrap=True)


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.low:.2f}–{metric.high:.2f})"
