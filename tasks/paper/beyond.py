"""Rows that are not in the paper, each compared with a row from which it differs in one setting.

A paired t test over the seeds that both were run with shows whether a row beats the row that it is compared with. A
test at 0.05 is meant for a single question: with many rows, expect one in twenty to look better by chance.
"""

from dataclasses import dataclass

from sepscene.tasks.evaluation.statistics import Interval, PairedTest, paired_t, t_interval
from sepscene.tasks.paper.claims import Metrics


@dataclass(frozen=True)
class BeyondRow:
    """A row that is not in the paper.

    Attributes:
        name: of the experiment that computes it.
        label: for tables.
        reference: the row that it is compared with.
    """

    name: str
    label: str
    reference: str


BEYOND: tuple[BeyondRow, ...] = (
    BeyondRow("beyond/weights", "S2∨N, N three times as often, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow(
        "beyond/curriculum-to-S2", "S2∨N, curriculum from N alone to S2 alone, SimCLR & CP", "table4/S2+N/simclr-cp"
    ),
    BeyondRow(
        "beyond/curriculum-to-N", "S2∨N, curriculum from S2 alone to N alone, SimCLR & CP", "table4/S2+N/simclr-cp"
    ),
    BeyondRow("beyond/chan-chan", "S2∨N, chan vs chan, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/architectures", "S2∨N∨untrained STFT network, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/loudest", "S2∨N, always the loudest channel, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/patch-transformer", "S2∨N, a patch transformer, SimCLR & CP", "table4/S2+N/simclr-cp"),
)


@dataclass(frozen=True)
class BeyondResult:
    """The result of a row; no test if it shares no seed with the row that it is compared with."""

    row: BeyondRow
    ours: Interval
    test: PairedTest | None


def beyond_results(metrics: Metrics) -> tuple[BeyondResult, ...]:
    """The results of the rows that were run.

    Raises:
        EvaluationError: metrics are not finite.
    """
    results = []
    for row in BEYOND:
        ours = metrics.get(row.name, {})
        theirs = metrics.get(row.reference, {})
        seeds = sorted(ours.keys() & theirs.keys())
        test = paired_t([theirs[seed] for seed in seeds], [ours[seed] for seed in seeds]) if seeds else None
        if ours:
            results.append(BeyondResult(row, t_interval(list(ours.values())), test))
    return tuple(results)
