"""The last stage of a run: evaluate its encoder beside the baselines and its ladder, and write what was measured."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ray
from rich.table import Table

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import update_card
from sepscene.models.trust import trust_variables
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.evaluation.embed_manifest import embed_manifests
from sepscene.orchestration.evaluation.scoring import score_encoder, score_processors
from sepscene.orchestration.pipeline.collect_results import collect_results
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.records.results import Metric, ProcessorResult, RunResults
from sepscene.orchestration.reports.listening_data import listening_page
from sepscene.orchestration.reports.run_report import write_report
from sepscene.orchestration.runtime.placement import actor_demand
from sepscene.tasks.datasets.readers import Manifest

STAGE = "evaluate"
HEADLINES = ("shallow_map", "qbe_map", "linear_map")


def encoders_of(run: Run, train: Manifest) -> dict[str, Path]:
    """The run's encoder and the baselines beside it, made where they are not there yet: name -> bundle's folder.

    Args:
        run: with its encoder trained.
        train: the clips on which a mix-mix baseline is trained.
    """
    pair = run.experiment.views.pair
    bundles: dict[str, Path] = {pair: run.files.encoder}
    if run.experiment.evaluation.baselines:
        if run.experiment.views.separates:
            bundles["mix-mix"] = run.encoder(train, {}, pair="mix-mix")
        bundles["untrained"] = run.untrained()
    return bundles


def evaluate_run(run: Run, train: Manifest, test: Manifest, ladder: dict[str, str]) -> RunResults:
    """Evaluate the run's encoder and its baselines, write results.json and the report, and log both.

    Args:
        run: with its encoder trained.
        train: its clips train the probes.
        test: its clips are evaluated.
        ladder: processor name -> folder, scored on held-out mixtures.
    """
    experiment = run.experiment
    scores = scores_of_ladder(ladder, test, experiment) if ladder else None
    bundles = encoders_of(run, train)
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
        processors = ray.get(scores) if scores else []
        run.advance(clips + len(encoders) + len(ladder))
        if ladder:
            own = encoders[0].name if encoders[0].metrics else None
            listening_page(run.folder, test, experiment.audio, ladder, processors, own)
    unread = [len(part) - len(h[encoders[0].name].position_N) for part, h in zip(parts, embedded, strict=True)]
    results = collect_results(run, train, test, encoders, processors, sum(unread))
    results.save(run.folder)
    metrics = {f"{e.name}/{name}": metric.value for e in encoders for name, metric in e.metrics.items()}
    run.tracker.log_metrics(STAGE, metrics)
    run.tracker.log_metrics("", {name: metric.value for name, metric in encoders[0].metrics.items()})
    for encoder in encoders:
        update_card(bundles[encoder.name], {"metrics": {k: f.model_dump() for k, f in encoder.metrics.items()}})
        if encoder.name != "untrained":
            run.publish(encoder.name, bundles[encoder.name])
    files = run.files
    pages = (*write_report(run.folder), files.listening_page, files.sounds, files.plots)
    for path in (files.results, *pages):
        if path.exists():
            run.tracker.log_artifact("", path, path.name if path.is_dir() else None)
    return results


def score_ladder(run: Run, test: Manifest, ladder: dict[str, str]) -> None:
    """Make the page on which the ladder that many trials share can be heard: RUN/listen.html."""
    with run.stage("ladder", "listen to the ladder", len(ladder) + 1):
        processors = ray.get(scores_of_ladder(ladder, test, run.experiment))
        run.advance(len(ladder))
        page = listening_page(run.folder, test, run.experiment.audio, ladder, processors)
        run.tracker.log_artifact("", page)


def scores_of_ladder(
    ladder: Mapping[str, str], test: Manifest, experiment: Experiment
) -> "ray.ObjectRef[list[ProcessorResult]]":
    """The scores of a whole ladder, made beside what this process does meanwhile, on a CPU where separators stand."""
    clips = test.clips.slice(0, 2 * experiment.evaluation.separator_mixtures)
    demand = replace(actor_demand(experiment.resources), gpus=0.0, accelerator=None)
    options = {"runtime_env": {"env_vars": trust_variables()}, **demand.ray_options()}
    return ray.remote(score_processors).options(**options).remote(ladder, replace(test, clips=clips), experiment)


def summarise(run: Run) -> None:
    """Tell what was made, where it is, and what to do next."""
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
        why = run.tracker.fault or "it does not answer"
        words = f"MLflow does not have all of it ({why}); send the rest later: sepscene sync {run.folder}"
        run.console.print(words, style="yellow", soft_wrap=True)


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.low:.2f}–{metric.high:.2f})"
