"""The paper's Tables 2, 4 and 5 as data, its six claims, and the test that decides each from our own figures.

Rows go by the names of the experiments that make them (`table2/mix-mix+specaug`, `table4/S2+N/simclr-cp`,
`table5/d1024`); figures are the shallow classification mAP of each row and seed.

How a claim is decided. It is a set of contrasts "row X beats row Y". Each is a paired t test over the seeds
that both rows were run with (equal seeds share data, draws and probes). The claim is

- supported when every contrast was run and comes out its way, each with p < 0.05 (all must hold, so that
  testing many needs no correction);
- contradicted when some contrast comes out the other way with p < 0.05 / number of contrasts (one is enough,
  so that testing many does: Bonferroni);
- undecided at this scale otherwise: a row is missing, seeds are too few, or differences too small for them.

"At least as good" is tested with a margin: X beats Y - 0.01. Each claim is judged by itself: nothing is corrected for
there being six. The margin, the level and the tests are ours; the paper gives one figure for each row and no interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sepscene.tasks.evaluation.statistics import Interval, PairedTest, paired_t, t_interval

Verdict = Literal["supported", "contradicted", "undecided"]
Figures = Mapping[str, Mapping[int, float]]
"""Row name -> seed -> mAP."""

LEVEL = 0.05
MARGIN = 0.01


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper.

    Attributes:
        name: of the experiment that makes it.
        label: as the paper writes it.
        value: the paper's mAP.
        note: what else the paper says of it.
    """

    name: str
    label: str
    value: float
    note: str = ""


def _table4() -> tuple[PaperRow, ...]:
    figures = {
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
        for combination, values in figures.items()
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
"""Rows of two tables that are one experiment under two names: either one's figures serve both."""


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
        margin: how much lower `better` may lie and the claim still hold; 0 unless it says "at least as good".
    """

    statement: str
    contrasts: tuple[Contrast, ...]
    margin: float = 0.0


def _claims() -> tuple[Claim, ...]:
    simclr = [row.name for row in PAPER_TABLES["table4"] if row.name.endswith("/simclr")]
    best = "table4/S2+N/simclr"
    return (
        Claim(
            "separation alone beats SpecAugment alone",
            (Contrast("table2/mix-chan", "table2/mix-mix+specaug"),),
        ),
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
            tuple(Contrast(best, row) for row in simclr if row != best),
        ),
        Claim(
            "coincidence prediction helps in every row",
            tuple(Contrast(f"{row}-cp", row) for row in simclr),
        ),
        Claim("d = 1024 beats d = 128", (Contrast("table5/d1024", "table5/d128"),)),
    )


CLAIMS: tuple[Claim, ...] = _claims()
"""The six claims that a reproduction must test, in the paper's order."""


@dataclass(frozen=True)
class ContrastResult:
    """How one contrast came out.

    Attributes:
        paper: the paper's own difference.
        seeds: that both rows were run with.
        test: difference `better` - `worse` with its interval, and p against "no better than the margin
            allows"; None where a row was not run or no seed is shared.
        verdict: of this contrast; contradiction at the level that its claim's number of contrasts asks for.
        reason: the numbers, or what is missing, in words.
    """

    contrast: Contrast
    paper: float
    seeds: tuple[int, ...]
    test: PairedTest | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class ClaimResult:
    """The verdict on a claim, with the contrasts behind it."""

    claim: Claim
    verdict: Verdict
    contrasts: tuple[ContrastResult, ...]
    reason: str


@dataclass(frozen=True)
class TableRow:
    """A row of the paper with ours beside it; None where it was not run."""

    paper: PaperRow
    ours: Interval | None


def table_rows(table: str, figures: Figures) -> tuple[TableRow, ...]:
    """A table of the paper ("table2", "table4", "table5") with our mean and t interval over seeds beside
    each row."""
    rows = []
    for row in PAPER_TABLES[table]:
        seeds = _seeds(figures, row.name)
        rows.append(TableRow(row, t_interval(list(seeds.values())) if seeds else None))
    return tuple(rows)


def decide_claims(figures: Figures) -> tuple[ClaimResult, ...]:
    """A verdict for each of the six claims, from as many rows and seeds as there are.

    Raises:
        EvaluationError: for figures that are not finite.
    """
    return tuple(_judge(claim, figures) for claim in CLAIMS)


def _judge(claim: Claim, figures: Figures) -> ClaimResult:
    results = tuple(_contrast(contrast, claim, figures) for contrast in claim.contrasts)
    for verdict in ("contradicted", "undecided"):
        decisive = [result.reason for result in results if result.verdict == verdict]
        if decisive:
            return ClaimResult(claim, verdict, results, "; ".join(decisive))
    return ClaimResult(claim, "supported", results, "; ".join(result.reason for result in results))


def _contrast(contrast: Contrast, claim: Claim, figures: Figures) -> ContrastResult:
    paper = _paper_value(contrast.better) - _paper_value(contrast.worse)
    better, worse = _seeds(figures, contrast.better), _seeds(figures, contrast.worse)
    seeds = tuple(sorted(better.keys() & worse.keys()))
    if not seeds:
        absent = [row for row, found in ((contrast.better, better), (contrast.worse, worse)) if not found]
        reason = " and ".join(f"{row} was not run" for row in absent)
        reason = reason or f"{contrast.better} and {contrast.worse} share no seed"
        return ContrastResult(contrast, paper, (), None, "undecided", reason)
    ours, theirs = [better[seed] for seed in seeds], [worse[seed] for seed in seeds]
    shifted = paired_t([value - claim.margin for value in theirs], ours)
    difference = paired_t(theirs, ours).difference
    null = f"{contrast.better} is no different from {contrast.worse}" + (f" - {claim.margin}" if claim.margin else "")
    test = PairedTest(difference, shifted.p, null)
    verdict = _verdict(shifted, len(claim.contrasts))
    return ContrastResult(contrast, paper, seeds, test, verdict, _reason(contrast, test, paper, claim.margin))


def _verdict(test: PairedTest, contrasts: int) -> Verdict:
    if test.p is None:
        return "undecided"
    if test.difference.value > 0 and test.p < LEVEL:
        return "supported"
    if test.difference.value < 0 and test.p < LEVEL / contrasts:
        return "contradicted"
    return "undecided"


def _reason(contrast: Contrast, test: PairedTest, paper: float, margin: float) -> str:
    found = test.difference
    if found.low is None or test.p is None:
        numbers = "one seed, no test" if found.count == 1 else "two seeds without any spread, no test"
    else:
        null = f" against −{margin:g}" if margin else ""  # the interval is about the difference itself
        numbers = f"95 % [{found.low:+.3f}, {found.high:+.3f}], p = {test.p:.3f}{null}, {found.count} seeds"
    return f"{contrast.better} - {contrast.worse} = {found.value:+.3f} (paper {paper:+.3f}; {numbers})"


def _seeds(figures: Figures, row: str) -> dict[int, float]:
    """The figures of a row by seed, those under its other name included."""
    twins = {**SAME_EXPERIMENT, **{second: first for first, second in SAME_EXPERIMENT.items()}}
    return {**figures.get(twins.get(row, ""), {}), **figures.get(row, {})}


def _paper_value(row: str) -> float:
    return next(found.value for table in PAPER_TABLES.values() for found in table if found.name == row)
