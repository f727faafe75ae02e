"""The last stage of a run: judge its encoder beside the baselines and its ladder, and tell what came out."""

import json
from pathlib import Path

import numpy as np
from rich.table import Table

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import update_card
from sepscene.models.separators.card import read_card
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.evaluation.compare import TEST_CLIPS, evidence_path, save_scores
from sepscene.orchestration.evaluation.embed_manifest import Embeddings, embed_manifests, score_separator
from sepscene.orchestration.pipeline import Run
from sepscene.orchestration.records.environment import environment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import (
    ClassResult,
    EncoderResult,
    Figure,
    LedgerResult,
    ProcessorResult,
    RunResults,
    StageResult,
    read_metrics,
)
from sepscene.orchestration.reports.listening_data import listening_page
from sepscene.orchestration.reports.run_report import write_report
from sepscene.orchestration.training.throughput import Balance, balance_of, bottleneck, store_counts
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.evaluation.probes import embedding_map
from sepscene.tasks.evaluation.resampling import resample
from sepscene.tasks.evaluation.scores import cross_validate, score_embeddings
from sepscene.tasks.evaluation.statistics import Interval, bootstrap_interval

STAGE = "evaluate"
_MAP_CLIPS = 400
LEAK = (
    "cross-validated over the folds: no probe has seen a label of the fold it is tested on, but separator and "
    "encoder have heard all clips, without labels"
)
"""What a reader of a cross-validated figure must know."""
HEADLINES = ("shallow_map", "qbe_map", "linear_map")


def evaluate_run(run: Run, train: Manifest, test: Manifest, ladder: dict[str, str]) -> RunResults:
    """Judge the run's encoder and its baselines, write results.json and the report, and log both.

    Args:
        run: with its encoder trained.
        train: its clips train the probes.
        test: its clips are judged.
        ladder: processor name -> folder, scored on held-out mixtures.
    """
    experiment = run.experiment
    bundles: dict[str, Path] = {experiment.views.pair: run.folder / "encoder"}
    if experiment.evaluation.baselines:
        if experiment.views.pair != "mix-mix":
            bundles["mix-mix"] = run.encoder(train, {}, pair="mix-mix")
        bundles["untrained"] = run.untrained()
    run.record_inputs(ladder, training=train, evaluation=test)
    parts = (train,) if experiment.data.by_folds else (train, test)
    clips = sum(len(part.clips) for part in parts)
    with run.stage(STAGE, "evaluate", clips + len(bundles) + len(ladder)):
        embedded = embed_manifests(bundles, parts, experiment, run.advance)
        encoders = []
        for name in bundles:
            h = [part[name] for part in embedded]
            encoders.append(score_encoder(name, h[0], h[-1], train, test, experiment, run.folder))
            run.advance(clips + len(encoders))
        processors = _judge_processors(run, test, ladder, clips + len(encoders))
        if ladder:
            listening_page(run.folder, test, experiment.audio, ladder, processors, encoders[0].name)
    results = _results(run, train, test, encoders, processors)
    results.save(run.folder)
    figures = {f"{e.name}/{name}": figure.value for e in encoders for name, figure in e.figures.items()}
    run.tracker.log_figures(STAGE, figures)
    run.tracker.log_figures("", {name: figure.value for name, figure in encoders[0].figures.items()})
    for encoder in encoders:
        update_card(bundles[encoder.name], {"figures": {k: f.model_dump() for k, f in encoder.figures.items()}})
        if encoder.name != "untrained":
            run.publish(encoder.name, bundles[encoder.name])
    pages = (*write_report(run.folder), run.folder / "listen.html", run.folder / "plots")
    for path in (run.folder / "results.json", *pages):
        if path.exists():
            run.tracker.log_artifact("", path, "plots" if path.is_dir() else None)
    return results


def score_encoder(
    name: str,
    train_h: Embeddings,
    test_h: Embeddings,
    train: Manifest,
    test: Manifest,
    experiment: Experiment,
    run_dir: Path,
) -> EncoderResult:
    """All figures of one encoder; its evidence is kept in RUN/evaluation/<name>.npz for comparisons.

    Where training and test clips are the same, its probes are cross-validated over their splits.
    """
    ids = np.array(test.clips["clip_id"].to_pylist())[test_h.position_N].tolist()
    settings, test_targets = experiment.evaluation.scoring, test.targets()[test_h.position_N]
    if experiment.data.by_folds:
        folds = np.array(test.clips["split"].to_pylist())[test_h.position_N].tolist()
        scores = cross_validate(test_h.h_ND, test_targets, folds, test.classes, settings, ids)
    else:
        train_targets = train.targets()[train_h.position_N]
        scores = score_embeddings(train_h.h_ND, train_targets, test_h.h_ND, test_targets, test.classes, settings, ids)
    save_scores(scores, evidence_path(run_dir, name))
    return EncoderResult(
        name=name,
        description="; ".join([LEAK] * experiment.data.by_folds + list(scores.notes)),
        figures={key: _figure(interval) for key, interval in scores.figures.items()},
        classes=tuple(
            ClassResult(
                name=row.name,
                positives=row.positives,
                shallow_ap=row.figures.get("shallow_map"),
                linear_ap=row.figures.get("linear_map"),
                qbe_ap=row.figures.get("qbe_map"),
            )
            for row in scores.per_class
        ),
        map_2d=_map_2d(test_h, test),
    )


def score_ladder(run: Run, test: Manifest, ladder: dict[str, str]) -> None:
    """Make the page on which the ladder that many trials share can be heard: RUN/listen.html."""
    with run.stage("ladder", "listen to the ladder", len(ladder) + 1):
        processors = _judge_processors(run, test, ladder, 0)
        page = listening_page(run.folder, test, run.experiment.audio, ladder, processors)
        run.tracker.log_artifact("", page)


def _judge_processors(run: Run, test: Manifest, ladder: dict[str, str], done: int) -> list[ProcessorResult]:
    """Score the whole ladder; the stage's progress goes on from `done`."""
    processors: list[ProcessorResult] = []
    for name, folder in ladder.items():
        processors.append(score_processor(name, folder, test, run.experiment))
        run.advance(done + len(processors))
    return processors


def score_processor(name: str, folder: str, test: Manifest, experiment: Experiment) -> ProcessorResult:
    """Score one checkpoint of the ladder on mixtures of held-out clips."""
    card = read_card(folder)
    scores = score_separator(folder, test, experiment.audio, experiment.evaluation.separator_mixtures)
    return ProcessorResult(
        name=name,
        step=int(card.metadata.get("step", 0)),
        digest=card.digest,
        si_sdr_improvement_db=_mean_figure(scores.improvement_db),
        mixit_loss=_mean_figure(scores.loss),
    )


def _figure(interval: Interval) -> Figure:
    return Figure(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        count=interval.count,
        interval=interval.method,
    )


def _mean_figure(values_N: np.ndarray) -> Figure | None:
    values_N = values_N[np.isfinite(values_N)]
    if not len(values_N):
        return None
    weights_NR = resample(len(values_N))
    return _figure(bootstrap_interval(float(values_N.mean()), values_N @ weights_NR / len(values_N), len(values_N)))


def _map_2d(embedded: Embeddings, test: Manifest) -> tuple[tuple[float, float, str], ...]:
    labels = test.clips["labels"].to_pylist()
    some = slice(0, _MAP_CLIPS)
    points = embedding_map(embedded.h_ND[some])
    return tuple(
        (float(x), float(y), (labels[position] or [""])[0])
        for (x, y), position in zip(points, embedded.position_N[some], strict=True)
    )


def _results(
    run: Run,
    train: Manifest,
    test: Manifest,
    encoders: list[EncoderResult],
    processors: list[ProcessorResult],
) -> RunResults:
    experiment, folder = run.experiment, run.folder
    clips = len(train.clips) + (0 if experiment.data.by_folds else len(test.clips))
    timings = json.loads((folder / "stages.json").read_text())
    metrics = read_metrics(folder)
    balance = balance_of(metrics, f"pretrain-{experiment.views.pair}")
    ledger = Ledger.from_json((folder / "ledger.json").read_text())
    return RunResults(
        run_id=folder.name,
        experiment=experiment.name,
        scale=experiment.scale,
        table_row=experiment.table_row,
        seed=experiment.seed,
        started=(folder / "started").read_text(),
        seconds=sum(timings.values()),
        stages=_stages(timings, metrics),
        ladder=tuple(processors),
        encoders=tuple(encoders),
        ledger=LedgerResult(
            rows=ledger.rows,
            consumed=ledger.consumed,
            lost=ledger.rows - (ledger.consumed - ledger.twice),
            twice=ledger.twice,
            quarantined=ledger.quarantined,
        ),
        bottleneck=bottleneck(balance, experiment) if balance else "",
        environment=environment(),
        data={
            "data set": experiment.data.described,
            "training clips": str(len(train.clips)),
            "test clips": "the same, by cross-validation" if experiment.data.by_folds else str(len(test.clips)),
            "hours": f"{clips * experiment.audio.clip_seconds / 3600:.2f}",
            "manifest": train.digest()[:12],
            TEST_CLIPS: test.digest()[:12],
        },
    )


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


def summarise(run: Run) -> None:
    """Tell what was made, where it is, and what to do next."""
    try:
        results = RunResults.load(run.folder)
    except SepsceneError:
        run.console.print(f"encoder       {run.folder / 'encoder'}", soft_wrap=True)
        run.console.print(f"judge it      sepscene evaluate {run.folder}", soft_wrap=True)
        return
    table = Table(title=f"{results.experiment} ({results.scale}), {results.seconds:.0f} s")
    names = [name for name in HEADLINES if name in results.encoders[0].figures]
    table.add_column("encoder", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_map", " mAP").replace("qbe", "query by ex."), justify="right", no_wrap=True)
    for encoder in results.encoders:
        table.add_row(encoder.name, *(_cell(encoder.figures.get(name)) for name in names))
    run.console.print(table)
    run.console.print(f"report        {run.folder / 'report.html'}", soft_wrap=True)
    if (run.folder / "listen.html").exists():
        run.console.print(f"listen        {run.folder / 'listen.html'}", soft_wrap=True)
    run.console.print(f"encoder       {run.folder / 'encoder'}", soft_wrap=True)
    run.console.print(f"embed sounds  sepscene embed {run.folder} FILES --out embeddings.parquet", soft_wrap=True)
    run.console.print(f"MLflow UI     sepscene ui {run.folder}", soft_wrap=True)
    if run.tracker.unsent:
        run.console.print(
            f"[yellow]MLflow was away; send the rest later: sepscene sync {run.folder}[/yellow]", soft_wrap=True
        )


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.2f}–{figure.high:.2f})"
