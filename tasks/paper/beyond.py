"""Rows that the paper does not have, each beside the row of ours that it differs from in one thing.

The paper gives no number for them. The question for each is whether it beats the row beside it, by a paired t test over
the seeds that both were run with. A test at 0.05 is meant for a single question: with many rows, expect one in twenty
to come out well by luck.
"""

from dataclasses import dataclass

from sepscene.tasks.evaluation.statistics import Interval, PairedTest, paired_t, t_interval
from sepscene.tasks.paper.claims import Metrics


@dataclass(frozen=True)
class BeyondRow:
    """A row of ours.

    Attributes:
        name: of the experiment that makes it.
        label: for tables.
        beside: the row that it is compared with.
    """

    name: str
    label: str
    beside: str


BEYOND: tuple[BeyondRow, ...] = (
    BeyondRow("beyond/weights", "S2∨N, N three times as often, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/curriculum-to-S2", "from N alone to S2 alone, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/curriculum-to-N", "from S2 alone to N alone, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/chan-chan", "S2∨N, chan vs chan, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/architectures", "S2∨N∨untrained STFT network, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/loudest", "S2∨N, always the loudest channel, SimCLR & CP", "table4/S2+N/simclr-cp"),
    BeyondRow("beyond/patch-transformer", "S2∨N, a patch transformer, SimCLR & CP", "table4/S2+N/simclr-cp"),
)


@dataclass(frozen=True)
class BeyondResult:
    """How a row came out; no test where the row beside it was not run with any of its seeds."""

    row: BeyondRow
    ours: Interval
    test: PairedTest | None


def beyond_results(metrics: Metrics) -> tuple[BeyondResult, ...]:
    """The rows that were run.

    Raises:
        EvaluationError: for metrics that are not finite.
    """
    results = []
    for row in BEYOND:
        ours = metrics.get(row.name, {})
        theirs = metrics.get(row.beside, {})
        seeds = sorted(ours.keys() & theirs.keys())
        test = paired_t([theirs[seed] for seed in seeds], [ours[seed] for seed in seeds]) if seeds else None
        if ours:
            results.append(BeyondResult(row, t_interval(list(ours.values())), test))
    return tuple(results)
