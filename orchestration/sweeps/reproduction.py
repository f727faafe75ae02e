"""Reproduction of the paper's tables: runs every row with several seeds and compares the results with the paper's."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import SCALES, Scale, named_experiment
from sepscene.orchestration.records.environment import command_line, environment
from sepscene.orchestration.records.results import ReproducedRun, ReproductionResults, RunResults
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.reports.reproduction_report import write_reproduction_report
from sepscene.orchestration.separator_config import Separator
from sepscene.orchestration.sweeps.run_trials import parent_run, prepare_shared, run_trials
from sepscene.orchestration.sweeps.trial_plan import Trial, processors_of
from sepscene.orchestration.sweeps.trial_status import Outcome
from sepscene.tasks.paper.beyond import BEYOND
from sepscene.tasks.paper.claims import OTHER_NAMES, PAPER_CLIPS

BASELINE_ROW = "table2/mix-mix"
"""Its trials also evaluate the untrained encoder, which all rows are compared with."""


def reproduce(
    experiments: list[Experiment],
    tables: list[str],
    scale: Scale,
    changes: dict[str, Any],
    seeds: int,
    folder: Path,
    tracking_uri: str,
    console: Console,
) -> ReproductionResults:
    """Run rows of the paper's tables, or continue a reproduction, and write the report.

    Further rows, tables and seeds can be added to a folder later: its finished trials are not run again.

    Args:
        experiments: the rows, from `reproduction_plan.row_experiments`.
        tables: names of the tables that the rows are from.
        changes: dotted fields that are changed in every row, e.g. the data.
        seeds: number of runs of each row.
    """
    base = SCALES[scale]().changed({**changes, "name": "reproduction"})
    # Also trains the separators that only rows beyond the paper need, so that these rows can be added later.
    beside: dict[str, Any] = {}
    for row in BEYOND:
        beside |= named_experiment(row.name, scale).separator.beside
    base = base.changed({"separator.beside": beside})
    about = {"kind": "reproduction", "tables": " ".join(tables), "scale": scale}
    with parent_run(tracking_uri, folder, about, {"seeds": seeds, **changes}, console) as (tracker, tags):
        shared = prepare_shared(base, processors_of(experiments), folder, tracking_uri, console, tags)
        trials = [
            _trial(row, shared, seed)
            for seed in range(seeds)
            for row in experiments
            if not _is_finished_under_other_name(row, seed, folder)
        ]
        files = SweepFolder(folder)

        def write(found: list[Outcome]) -> ReproductionResults:
            runs = [run.path for run in files.runs() if run.finished.exists()]
            finished = list(map(RunResults.load, runs))
            results = ReproductionResults(
                reproduction_id=folder.name,
                scale=scale,
                command=command_line(),
                started=min((run.started for run in finished), default=datetime.now(UTC).isoformat(timespec="seconds")),
                seconds=sum(run.seconds for run in finished),
                differs=_differences(base, finished),
                runs=tuple(map(_reproduced, finished, map(files.relative, runs))),
                failed={outcome.trial.name: outcome.reason for outcome in found if outcome.reason},
                environment=environment(),
                data=finished[0].data if finished else {},
            )
            results.save(folder)
            write_reproduction_report(folder)
            return results

        results = write(run_trials(trials, folder, tracking_uri, console, write, tags=tags))
        for path in (files.reproduction, files.report_html, files.report_md):
            tracker.log_artifact("", path)
    return results


def _trial(experiment: Experiment, shared: Experiment, seed: int) -> Trial:
    """The trial of a row with one seed. The baseline row also evaluates the untrained encoder."""
    row = experiment.name
    parts = {part: getattr(shared, part) for part in ("data", "separator", "store", "evaluation", "resources")}
    changes = {**parts, "seed": seed, "evaluation.baselines": row == BASELINE_ROW}
    return Trial(_trial_name(row, seed), experiment.changed(changes), {"row": row}, seed)


def _trial_name(row: str, seed: int) -> str:
    return f"{row.replace('/', '-')},seed={seed}"


def _is_finished_under_other_name(experiment: Experiment, seed: int, folder: Path) -> bool:
    """Whether the row is finished under its name in another table."""
    other_name = OTHER_NAMES.get(experiment.name)
    return other_name is not None and SweepFolder(folder).trial(_trial_name(other_name, seed)).finished.exists()


def _reproduced(results: RunResults, run_dir: str) -> ReproducedRun:
    ours = results.encoders[0]
    unreadable = len(results.ledger.quarantined) if results.ledger else 0
    return ReproducedRun(
        row=results.table_row or results.experiment,
        seed=results.seed,
        metric=ours.metrics["shallow_map"],
        untrained=next((e.metrics["shallow_map"] for e in results.encoders if e.name == "untrained"), None),
        replicates=ours.replicates,
        diagnostics=ours.diagnostics,
        differs=(f"unreadable clips left out: {unreadable}",) if unreadable else (),
        run_dir=run_dir,
    )


def _differences(experiment: Experiment, finished: list[RunResults]) -> tuple[str, ...]:
    """How the runs differ from those of the paper, according to their shared configuration."""
    clips = finished[0].data["training clips"] if finished else "?"
    batch = experiment.training.global_batch
    steps = -(-finished[0].ledger.rows // batch) if finished and finished[0].ledger else "?"
    network = experiment.encoder.description
    paper = Cnn14Config().description
    return (
        f"{clips} clips of {experiment.data.format} instead of about {PAPER_CLIPS:,} of AudioSet",
        f"global batch {batch} and {steps} steps; the paper's are not stated",
        network if network == paper else f"{network} instead of {paper}",
        _separator(experiment.separator),
        f"the steps of the ladder are {dict(experiment.separator.ladder.steps)} instead of 0, 500, 5k, 1.7M",
        "all seeds share the data and the separator",
    )


def _separator(separator: Separator) -> str:
    """The size of the separator; unknown for separators that the user provides."""
    if separator.checkpoints:
        return "separators provided by the user, not trained"
    ours, paper = (_size(network) for network in (separator.network, TDCNppConfig()))
    return f"a separator of {ours}" + ("" if ours == paper else f" instead of {paper}")


def _size(network: TDCNppConfig) -> str:
    return f"{network.repeats} x {network.blocks} blocks of width {network.bottleneck} and {network.hidden}"
