"""The report of a reproduction: the paper's tables compared with ours, and a verdict on each of its six claims."""

from collections import Counter
from pathlib import Path
from statistics import mean

from sepscene.orchestration.records.results import Metric, ReproducedRun, ReproductionResults, metric_of
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.reports import plots
from sepscene.orchestration.reports.paper_tables import Table, compared_tables
from sepscene.orchestration.reports.render import render_report, report_of
from sepscene.tasks.evaluation.shortcuts import Shortcuts
from sepscene.tasks.evaluation.statistics import format_p, t_interval
from sepscene.tasks.paper.beyond import BeyondResult, beyond_results
from sepscene.tasks.paper.claims import OTHER_NAMES, ClaimResult, decide_claims
from sepscene.tasks.paper.verdicts import LEVEL, MARGIN, signed

METHOD = (
    f"Paired t tests over the seeds that both rows share, one-sided, level {LEVEL:g}. Intervals cover the variation "
    "over seeds, and over test clips if the runs have resampled these. A claim is supported if the tests of all its "
    "contrasts support it, contradicted if one test contradicts it, equal if all contrasts are significantly above "
    f"−{MARGIN:g} and one is significantly below +{MARGIN:g} (with a Bonferroni correction over the contrasts that "
    f"were run, if one is enough), and undecided otherwise. “At least as good” allows a difference of {MARGIN:g}. The "
    "claim about coincidence prediction is decided by its mean over the rows. Power is the probability that this "
    f"design detects a true difference of {MARGIN:g}. Each claim is decided separately, without a correction for "
    "testing six claims."
)
"""The statistical method, for readers of the report."""

MARKS = {"supported": "✓", "contradicted": "✗", "equal": "=", "undecided": "?"}


def write_reproduction_report(directory: Path) -> tuple[Path, Path]:
    """Write REPRODUCTION/report.html and REPRODUCTION/report.md from reproduction.json.

    Raises:
        SepsceneError: when the folder holds no reproduction.json.
    """
    results = ReproductionResults.load(directory)
    files = SweepFolder(directory)
    by_row = runs_by_row(results)
    metrics = {row: {run.seed: run.metric.value for run in runs} for row, runs in by_row.items()}
    replicates = {row: {run.seed: run.replicates for run in runs} for row, runs in by_row.items()}
    tables = our_tables(by_row)
    shown_tables = [table for table in tables if any(line.ours for line in table.lines)]
    claims = decide_claims(metrics, replicates)
    beyond = beyond_results(metrics)
    diagnostics = shortcut_lines(by_row)
    return render_report(
        "reproduction",
        files,
        results=results,
        claims=claims,
        marks=MARKS,
        method=METHOD,
        reasons={claim.claim.statement: short_reason(claim) for claim in claims},
        answer=count_verdicts(claims),
        untrained=untrained_metric(results),
        tables=tables,
        shown_tables=shown_tables,
        beyond=[(result, metric_of(result.ours), _gain(result)) for result in beyond],
        pictures={table.name: plots.comparison(table) for table in shown_tables},
        diagnostics=diagnostics,
        shortcut=shortcut_sentence(diagnostics),
        differs={row: text for row, runs in by_row.items() if (text := _differences(runs))},
        seeds={row: ", ".join(str(run.seed) for run in runs) for row, runs in by_row.items()},
        reports={run.run_dir: report_of(directory, run.run_dir) for run in results.runs},
        listening_page=files.relative(files.shared.listening_page) if files.shared.listening_page.exists() else "",
    )


def runs_by_row(results: ReproductionResults) -> dict[str, list[ReproducedRun]]:
    """The runs of each row, by seed; an experiment that is a row of two tables has both names."""
    rows: dict[str, dict[int, ReproducedRun]] = {}
    for run in results.runs:
        rows.setdefault(run.row, {})[run.seed] = run
    names = dict.fromkeys(name for row in rows for name in (row, OTHER_NAMES.get(row, row)))
    both = {name: {**rows.get(OTHER_NAMES.get(name, ""), {}), **rows.get(name, {})} for name in names}
    return {name: [runs[seed] for seed in sorted(runs)] for name, runs in both.items()}


def our_tables(by_row: dict[str, list[ReproducedRun]]) -> tuple[Table, ...]:
    """The paper's tables with our mean over seeds; with one seed, the run's own metric and interval."""
    ours = {}
    for row, runs in by_row.items():
        over_seeds = t_interval([run.metric.value for run in runs])
        ours[row] = runs[0].metric if len(runs) == 1 else metric_of(over_seeds)
    return compared_tables(ours)


def untrained_metric(results: ReproductionResults) -> Metric | None:
    """The untrained encoder's mAP over seeds; None if no run has evaluated it."""
    values = [run.untrained.value for run in results.runs if run.untrained]
    return metric_of(t_interval(values)) if values else None


def count_verdicts(claims: tuple[ClaimResult, ...]) -> str:
    """A sentence with the number of claims by verdict."""
    counts = Counter[str](claim.verdict for claim in claims)
    text = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if counts[verdict])
    return f"Of the paper's {len(claims)} claims: {text}."


def short_reason(claim: ClaimResult) -> str:
    """The reason of a verdict; "not run" if none of the claim's many contrasts was run."""
    short = len(claim.contrasts) == 1 or any(contrast.seeds for contrast in claim.contrasts)
    return claim.reason if short else "not run"


def _gain(result: BeyondResult) -> str:
    """Such as "+0.012 [−0.003, +0.027], p = 0.08"; or the reason why there is no gain or interval."""
    if result.test is None:
        return "no seed in common"
    found = result.test.difference
    p = result.test.p
    if found.low is None or found.high is None or p is None:
        return f"{signed(found.value)}, {'one seed' if found.count == 1 else 'two seeds with the same gain'}"
    return f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}], {format_p(p)}"


def shortcut_lines(by_row: dict[str, list[ReproducedRun]]) -> list[tuple[str, dict[str, float]]]:
    """The diagnostics of each row, as means over its seeds; rows without diagnostics are left out."""
    lines = []
    for row, runs in by_row.items():
        known = [run.diagnostics for run in runs if run.diagnostics]
        if known:
            lines.append((row, {name: mean(one[name] for one in known) for name in known[0]}))
    return lines


def shortcut_sentence(lines: list[tuple[str, dict[str, float]]]) -> str:
    """The rows that have learned a shortcut, and what to do; empty if none has."""
    found = {row: Shortcuts(**diagnostics).warning for row, diagnostics in lines}
    rows = [row for row, warning in found.items() if warning]
    return f"{', '.join(rows)}: {found[rows[0]]}" if rows else ""


def _differences(runs: list[ReproducedRun]) -> str:
    return "; ".join(dict.fromkeys(difference for run in runs for difference in run.differs))
