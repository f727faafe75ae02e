"""The paper's tables, run: every row over several seeds, the paper's figures beside ours, a verdict on each claim."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestration.config import Experiment
from orchestration.environment import command_line, environment
from orchestration.experiments import EXPERIMENTS, SCALES, Scale, named_experiment
from orchestration.paper_tables import planned_rows
from orchestration.reproduction_report import write_reproduction_report
from orchestration.results import ReproducedRun, ReproductionResults, RunResults
from orchestration.sweep_plan import Trial
from orchestration.trial_driver import FINISHED
from orchestration.trials import Outcome, parent_run, run_trials, share
from tasks.beyond import BEYOND

FLOOR_ROW = "table2/mix-mix"
PAPER_CLIPS, PAPER_BATCH = 2_000_000, 4096


def reproduce(
    tables: list[str],
    rows: list[str] | None,
    scale: Scale,
    changes: dict[str, Any],
    seeds: int,
    folder: Path,
    tracking_uri: str,
    console: Console,
) -> ReproductionResults:
    """Run the rows of the paper's tables that are this framework's, or go on with it, and write the report.

    A folder may take further rows, tables and seeds later: whatever it holds finished is not run again.

    Args:
        tables: "table2", "table4", "table5", and "beyond" for rows that the paper does not have.
        rows: only these rows; none runs all.
        scale: of the experiments.
        changes: dotted fields to change in every row, e.g. the data.
        seeds: runs of each row.
        folder: where everything goes.
        tracking_uri: MLflow's.
        console: shows the progress.

    Raises:
        SepsceneError: for an unknown table or row, or a change that the configuration refuses.
    """
    experiments = [named_experiment(name, scale).changed(changes) for name in planned_rows(tables, rows)]
    base = SCALES[scale]().changed({**changes, "name": "reproduction"})
    # What any row beyond the paper needs is made at once, so that the folder can take those rows later.
    others = [named_experiment(row.name, scale).separator.beside for row in BEYOND if row.name in EXPERIMENTS]
    beside = {name: network for networks in others for name, network in networks.items()}
    base = base.model_copy(update={"separator": base.separator.model_copy(update={"beside": beside})})
    processors = {p for e in experiments if e.views.pair != "mix-mix" for p in e.views.combination}
    about = {"kind": "reproduction", "tables": " ".join(tables), "scale": scale}
    with parent_run(tracking_uri, folder, about, {"seeds": seeds, **changes}) as (tracker, tags):
        shared = share(base, processors, folder, tracking_uri, console, tags)
        trials = [_trial(e, shared, seed) for seed in range(seeds) for e in experiments]

        def write(found: list[Outcome]) -> ReproductionResults:
            finished = _finished(folder)
            results = ReproductionResults(
                reproduction_id=folder.name,
                scale=scale,
                command=command_line(),
                started=min((run.started for run in finished), default=datetime.now(UTC).isoformat(timespec="seconds")),
                seconds=sum(run.seconds for run in finished),
                differs=_differences(found),
                runs=tuple(map(_reproduced, finished)),
                failed={outcome.trial.name: outcome.reason for outcome in found if outcome.reason},
                environment=environment(),
                data=next((o.results.data for o in found if o.results), {}),
            )
            results.save(folder)
            write_reproduction_report(folder)
            return results

        results = write(run_trials(trials, folder, tracking_uri, console, write, tags=tags))
        for name in ("reproduction.json", "report.html", "report.md"):
            tracker.log_artifact("", folder / name)
    return results


def _trial(experiment: Experiment, shared: Experiment, seed: int) -> Trial:
    """A row with one seed. The first row judges the untrained encoder as well: the floor of all others."""
    parts = {part: getattr(shared, part) for part in ("data", "separator", "store", "evaluation", "resources")}
    if experiment.name == FLOOR_ROW:
        parts["evaluation"] = shared.evaluation.model_copy(update={"baselines": True})
    name = f"{experiment.name.replace('/', '-')},seed={seed}"
    return Trial(name, experiment.model_copy(update={**parts, "seed": seed}), {"row": experiment.name}, seed)


def _finished(folder: Path) -> list[RunResults]:
    """Every finished run of the folder, those of earlier commands included."""
    return [RunResults.load(path.parent) for path in sorted(folder.glob(f"trials/*/{FINISHED}"))]


def _reproduced(results: RunResults) -> ReproducedRun:
    return ReproducedRun(
        row=results.table_row or results.experiment,
        seed=results.seed,
        figure=results.encoders[0].figures["shallow_map"],
        untrained=next((e.figures["shallow_map"] for e in results.encoders if e.name == "untrained"), None),
        run_dir=f"trials/{results.run_id}",
    )


def _differences(found: list[Outcome]) -> tuple[str, ...]:
    """How our runs differ from the paper's, as far as the configuration says."""
    experiment = found[0].trial.experiment
    assert experiment is not None
    done = [outcome.results for outcome in found if outcome.results]
    clips = done[0].data["training clips"] if done else "?"
    steps = done[0].ledger.rows // experiment.training.global_batch if done and done[0].ledger else 0
    network = experiment.encoder.widths
    return (
        f"{clips} clips of {experiment.data.format} instead of about {PAPER_CLIPS:,} of AudioSet",
        f"global batch {experiment.training.global_batch} and {steps} steps; the paper's are not stated",
        f"CNN14 with widths {network}" + ("" if network[-1] == 2048 else " instead of 64 … 2048"),
        f"the ladder's steps are {dict(experiment.separator.ladder.steps)} instead of 0, 500, 5k, 1.7M",
        "all seeds share the data and the separator",
    )
