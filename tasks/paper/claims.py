"""The paper's Tables 2, 4 and 5 as data, its six claims, and the test that decides each from our own metrics.

Rows have the names of the experiments that compute them (`table2/mix-mix+specaug`, `table4/S2+N/simclr-cp`,
`table5/d1024`). Metrics are the shallow classification mAP of each row and seed.

How a claim is decided. A claim is a set of contrasts "row X beats row Y". It states that the smallest of their true
differences is above zero (above -0.01 for "at least as good"). The claim that coincidence prediction helps "in every
row" is decided by a single contrast, the mean over the rows that were run; the rows themselves are only shown. Each
contrast is a paired t test over the seeds that its rows share (equal seeds share data, draws and probes). If it is
known how the metrics of the runs vary with the test clips, this variance is added to that of the seeds. The rule
(`tasks.paper.verdicts`):

- supported: all contrasts were run, and each is above zero with p < 0.05 (all must hold, so multiple tests need no
  correction);
- contradicted: a contrast is below zero with p < 0.05 / number of contrasts that were run (one is enough, so multiple
  tests need the Bonferroni correction);
- equal within 0.01: all were run, each is above -0.01 with p < 0.05, and one is below +0.01 with p < 0.05 / number
  (two one-sided tests);
- undecided otherwise: a row is missing, or there are too few seeds for the size of the differences. The power shows
  which differences the design could have detected.

All p are one-sided. Each claim is decided separately, without a correction for six claims. The margin, the level and
the tests are ours; the paper gives one number per row and no intervals.

Shapes: R resamples of the test clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sepscene.tasks.evaluation.metrics import Floats
from sepscene.tasks.paper.verdicts import MARGIN, Contrasted, Decision, Verdict, contrasted, decide, signed

Metrics = Mapping[str, Mapping[int, float]]
"""Row name -> seed -> mAP."""

Replicates = Mapping[str, Mapping[int, Sequence[float]]]
"""Row name -> seed -> mAP on resampled test clips, the same resamples in all runs."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper.

    Attributes:
        name: of the experiment that computes it.
        label: as in the paper.
        value: the paper's mAP.
        note: how it differs from the other rows.
    """

    name: str
    label: str
    value: float
    note: str = ""


def _table4() -> tuple[PaperRow, ...]:
    metrics = {
        "S2": (0.282, 0.289),
        "S1": (0.283, 0.293),
        "F": (0.280, 0.297),
        "N": (0.286, 0.301),
        "S2+F": (0.283, 0.300),
        "S2+N": (0.297, 0.306),
        "S2+F+N": (0.285, 0.310),
    }
    tasks = (("simclr", "SimCLR"), ("simclr-cp", "SimCLR & CP"))
    return tuple(
        PaperRow(f"table4/{combination}/{task}", f"{combination.replace('+', '∨')}, {label}", value)
        for combination, values in metrics.items()
        for (task, label), value in zip(tasks, values, strict=True)
    )


_OTHER_TRIPLET = "another framework; ours is its loss on mix-mix views"

PAPER_TABLES: dict[str, tuple[PaperRow, ...]] = {
    "table2": (
        PaperRow("table2/mix-mix", "mix vs mix", 0.248),
        PaperRow("table2/mix-mix+specaug", "mix vs mix, SpecAug", 0.265),
        PaperRow("table2/mix-chan", "mix vs chan, SSep", 0.272),
        PaperRow("table2/mix-chan+specaug", "mix vs chan, SSep, SpecAug", 0.282),
    ),
    "table4": _table4(),
    "table5": (
        PaperRow("table5/triplet", "Unsupervised triplet (Jansen 2018), d = 128", 0.244, _OTHER_TRIPLET),
        PaperRow("table5/c3", "C³ (Jansen 2020), d = 128", 0.285, "multimodal"),
        PaperRow("table5/d128", "this framework, d = 128", 0.310),
        PaperRow("table5/d1024", "this framework, d = 1024", 0.326),
        PaperRow("table5/mmv", "MMV, d = 2048", 0.309, "multimodal"),
        PaperRow("table5/multi-format", "Multi-format, d = 2048", 0.329),
    ),
}
"""mAP of shallow classification on AudioSet, as the paper gives it."""

SAME_EXPERIMENT = {
    "table2/mix-chan+specaug": "table4/S2/simclr",
    "table5/d128": "table4/S2+F+N/simclr-cp",
}
"""Rows of two tables that are the same experiment under two names: metrics of either are valid for both."""

PAPER_CLIPS = 2_000_000
"""Clips of AudioSet that the paper trains on; studies say how many they have instead."""

OTHER_NAMES = {**SAME_EXPERIMENT, **{second: first for first, second in SAME_EXPERIMENT.items()}}
"""The other name of a row that two tables share."""


@dataclass(frozen=True)
class Contrast:
    """Row `better` is claimed to beat row `worse`."""

    better: str
    worse: str


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        statement: the claim in words.
        contrasts: all must hold.
        margin: how much lower `better` can be for the claim to still hold; 0 unless the claim is "at least as good".
        by_mean: whether the mean over the contrasts decides, instead of each of them.
    """

    statement: str
    contrasts: tuple[Contrast, ...]
    margin: float = 0.0
    by_mean: bool = False


_SIMCLR = [row.name for row in PAPER_TABLES["table4"] if row.name.endswith("/simclr")]
_BEST = "table4/S2+N/simclr"

CLAIMS: tuple[Claim, ...] = (
    Claim("separation alone beats SpecAugment alone", (Contrast("table2/mix-chan", "table2/mix-mix+specaug"),)),
    Claim(
        "separation and SpecAugment add up: both together beat either alone",
        tuple(Contrast("table2/mix-chan+specaug", f"table2/{row}") for row in ("mix-chan", "mix-mix+specaug")),
    ),
    Claim(
        "the untrained N is at least as good as the converged S2",
        tuple(Contrast(f"table4/N/{task}", f"table4/S2/{task}") for task in ("simclr", "simclr-cp")),
        MARGIN,
    ),
    Claim(
        "S2∨N is the best combination with SimCLR alone",
        tuple(Contrast(_BEST, row) for row in _SIMCLR if row != _BEST),
    ),
    Claim(
        "coincidence prediction helps in every row",
        tuple(Contrast(f"{row}-cp", row) for row in _SIMCLR),
        by_mean=True,
    ),
    Claim("d = 1024 beats d = 128", (Contrast("table5/d1024", "table5/d128"),)),
)
"""The six claims that a reproduction must test, in the paper's order."""


@dataclass(frozen=True)
class ContrastResult:
    """The result of one contrast.

    Attributes:
        paper: the difference in the paper.
        seeds: those with which both rows were run.
        found: the difference `better` - `worse` with its interval and p; None if a row was not run or the rows share
            no seed.
        reason: the numbers, or what is missing, as text.
    """

    contrast: Contrast
    paper: float
    seeds: tuple[int, ...]
    found: Contrasted | None
    reason: str


@dataclass(frozen=True)
class ClaimResult:
    """The verdict on a claim, with its contrasts; `power` is that of detecting a true difference of 0.01."""

    claim: Claim
    verdict: Verdict
    contrasts: tuple[ContrastResult, ...]
    reason: str
    power: float | None


def decide_claims(metrics: Metrics, replicates: Replicates | None = None) -> tuple[ClaimResult, ...]:
    """A verdict on each of the six claims, from the rows and seeds that are available.

    Args:
        metrics: mAP of each row and seed; a row that two tables share must be there under both names.
        replicates: mAP on resampled test clips; intervals then cover the test clips as well as the seeds.

    Raises:
        EvaluationError: metrics are not finite.
    """
    return tuple(_decide(claim, metrics, replicates or {}) for claim in CLAIMS)


def _decide(claim: Claim, metrics: Metrics, replicates: Replicates) -> ClaimResult:
    results = tuple(_contrast(contrast, claim.margin, metrics, replicates) for contrast in claim.contrasts)
    if claim.by_mean:
        mean, words = _mean_of_rows(results, metrics, replicates)
        decision = decide([mean] if mean else [], claim.margin, complete=all(result.found for result in results))
        return ClaimResult(claim, decision.verdict, results, words, decision.power)
    run = [result.found for result in results if result.found]
    decision = decide(run, claim.margin, complete=len(run) == len(results))
    return ClaimResult(claim, decision.verdict, results, _because(results, decision), decision.power)


def _because(results: tuple[ContrastResult, ...], decision: Decision) -> str:
    """The contrasts that led to the verdict, and those that are missing."""
    run = [result for result in results if result.found]
    if decision.verdict in ("supported", "equal"):
        return "; ".join(result.reason for result in run)
    decisive = [run[decision.lowest].reason] if run else []
    return "; ".join(decisive + [result.reason for result in results if not result.found])


def _mean_of_rows(
    results: tuple[ContrastResult, ...], metrics: Metrics, replicates: Replicates
) -> tuple[Contrasted | None, str]:
    """The mean over the contrasts that were run, on the seeds that all of them share; and its description."""
    run = [result for result in results if result.found]
    missing = [result.reason for result in results if not result.found]
    seeds = sorted(set.intersection(*(set(result.seeds) for result in run))) if run else []
    if not seeds:
        return None, "; ".join(missing) or "the rows share no seed"
    gains = [_gains(result.contrast, seeds, metrics, replicates) for result in run]
    clips = [gain_R for _, gain_R in gains if gain_R is not None]
    found = contrasted(
        np.mean([gain for gain, _ in gains], axis=0), np.mean(clips, axis=0) if len(clips) == len(run) else None
    )
    papers = float(np.mean([result.paper for result in run]))
    words = f"mean over {len(run)} of {len(results)} rows = {found.words} (paper {signed(papers)})"
    return found, "; ".join([words, *(result.reason for result in run), *missing])


def _contrast(contrast: Contrast, margin: float, metrics: Metrics, replicates: Replicates) -> ContrastResult:
    paper = _paper_value(contrast.better) - _paper_value(contrast.worse)
    better = metrics.get(contrast.better, {})
    worse = metrics.get(contrast.worse, {})
    seeds = tuple(sorted(better.keys() & worse.keys()))
    if not seeds:
        absent = [row for row, ours in ((contrast.better, better), (contrast.worse, worse)) if not ours]
        reason = " and ".join(f"{row} was not run" for row in absent)
        reason = reason or f"{contrast.better} and {contrast.worse} share no seed"
        return ContrastResult(contrast, paper, (), None, reason)
    found = contrasted(*_gains(contrast, seeds, metrics, replicates), margin)
    reason = f"{contrast.better} − {contrast.worse} = {found.words} (paper {signed(paper)})"
    return ContrastResult(contrast, paper, seeds, found, reason)


def _gains(
    contrast: Contrast, seeds: Sequence[int], metrics: Metrics, replicates: Replicates
) -> tuple[Floats, Floats | None]:
    """`better` - `worse` for each seed; and, if known, its mean over seeds on each resample of the test clips."""
    better = metrics.get(contrast.better, {})
    worse = metrics.get(contrast.worse, {})
    gain = np.array([better[seed] - worse[seed] for seed in seeds])
    ours = replicates.get(contrast.better, {})
    theirs = replicates.get(contrast.worse, {})
    if not all(len(row.get(seed, ())) for row in (ours, theirs) for seed in seeds):
        return gain, None
    return gain, np.mean([np.subtract(ours[seed], theirs[seed]) for seed in seeds], axis=0)


def _paper_value(row: str) -> float:
    return next(found.value for table in PAPER_TABLES.values() for found in table if found.name == row)
