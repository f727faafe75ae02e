"""The six claims, decided from the paper's own numbers, from noise, and with missing rows."""

import numpy as np
import pytest

from sepscene.tasks.paper.claims import CLAIMS, PAPER_TABLES, SAME_EXPERIMENT, ClaimResult, decide_claims

PAPER = {row.name: row.value for table in PAPER_TABLES.values() for row in table}


def runs(changes: dict[str, float] | None = None, seeds: int = 4, noise: float = 1e-4) -> dict[str, dict[int, float]]:
    """The paper's numbers as if they were ours, with a little noise between seeds."""
    draw = np.random.default_rng(0)
    values = {**PAPER, **(changes or {})}
    return {
        row: {seed: value + noise * draw.standard_normal() for seed in range(seeds)} for row, value in values.items()
    }


def by_number(results: tuple[ClaimResult, ...]) -> list[str]:
    return [result.verdict for result in results]


def test_the_papers_tables() -> None:
    assert [len(PAPER_TABLES[table]) for table in ("table2", "table4", "table5")] == [4, 14, 6]
    assert PAPER["table4/S2+F+N/simclr-cp"] == 0.310 and PAPER["table2/mix-mix"] == 0.248
    assert len(PAPER) == 24
    for one, other in SAME_EXPERIMENT.items():
        assert PAPER[one] == PAPER[other]  # the paper gives both tables the same metric


def test_there_are_six_claims_over_known_rows() -> None:
    assert [len(claim.contrasts) for claim in CLAIMS] == [1, 2, 2, 6, 7, 1]
    assert {row for claim in CLAIMS for c in claim.contrasts for row in (c.better, c.worse)} <= PAPER.keys()


def test_the_papers_own_metrics_support_all_six() -> None:
    results = decide_claims(runs())
    assert by_number(results) == ["supported"] * 6
    first = results[0].contrasts[0]
    assert first.paper == pytest.approx(0.007) and first.seeds == (0, 1, 2, 3)
    assert first.found is not None and first.found.p_above(0) < 0.05
    assert "paper +0.007" in results[0].reason and "4 seeds" in results[0].reason
    assert results[0].power is not None and results[0].power > 0.99


def test_a_reversed_difference_contradicts() -> None:
    results = decide_claims(runs({"table2/mix-chan": 0.240, "table4/F/simclr": 0.300, "table5/d1024": 0.300}))
    assert by_number(results) == [
        "contradicted",  # separation alone is now below SpecAugment alone
        "supported",
        "supported",
        "contradicted",  # F is now better than S2∨N
        "supported",  # in the mean over the rows
        "contradicted",
    ]
    assert "table4/F/simclr" in results[3].reason and "table4/N" not in results[3].reason


def test_coincidence_prediction_is_decided_by_the_mean_over_rows() -> None:
    hurts = {row: value - 0.02 for row, value in PAPER.items() if row.endswith("/simclr-cp")}
    fifth = decide_claims(runs(hurts))[4]
    assert fifth.verdict == "contradicted"
    assert fifth.reason.startswith("mean over 7 of 7 rows = −0.006") and "table4/F/simclr-cp" in fifth.reason
    even = {row: PAPER[row.removesuffix("-cp")] for row in PAPER if row.endswith("/simclr-cp")}
    assert decide_claims(runs(even, noise=1e-3))[4].verdict == "equal"


def test_noise_leaves_all_undecided() -> None:
    assert set(by_number(decide_claims(runs(noise=0.2, seeds=3)))) == {"undecided"}


def test_only_contrasts_that_were_run_count_against_a_contradiction() -> None:
    """One-sided p = 0.017 against one of two rows is enough; with six rows it is not."""
    metrics = runs(noise=1e-5)
    best = "table4/S2+N/simclr"
    rival = "table4/F/simclr"
    draw = np.array([-0.010, -0.004, -0.013, -0.005])  # paired t over four seeds
    metrics[rival] = {seed: metrics[best][seed] - draw[seed] for seed in range(4)}
    assert decide_claims(metrics)[3].verdict == "undecided"
    for row in ("S2", "S1", "S2+F", "S2+F+N"):
        del metrics[f"table4/{row}/simclr"]
    assert decide_claims(metrics)[3].verdict == "contradicted"


def test_at_least_as_good_has_a_margin() -> None:
    for n, verdict in ((0.276, "supported"), (0.268, "contradicted"), (0.272, "undecided")):
        metrics = runs({"table4/N/simclr": n}, noise=1e-3)
        assert decide_claims(metrics)[2].verdict == verdict, n


def test_the_reason_contains_the_margin() -> None:
    third = decide_claims(runs())[2].contrasts[0].reason
    assert "p < 0.001 against −0.01, 4 seeds" in third
    assert "against" not in decide_claims(runs())[0].reason


def test_two_seeds_without_any_spread_decide_nothing() -> None:
    two = decide_claims(runs(seeds=2, noise=0.0))
    assert set(by_number(two)) == {"undecided"} and "two seeds without any spread, no test" in two[0].reason
    assert by_number(decide_claims(runs(seeds=3, noise=0.0))) == ["supported"] * 6


def test_missing_rows_and_single_seeds_leave_it_undecided() -> None:
    nothing = decide_claims({})
    assert set(by_number(nothing)) == {"undecided"}
    assert nothing[0].reason == "table2/mix-chan was not run and table2/mix-mix+specaug was not run"
    one_seed = decide_claims(runs(seeds=1))
    assert set(by_number(one_seed)) == {"undecided"} and "one seed, no test" in one_seed[0].reason
    metrics = runs()
    del metrics["table4/F/simclr-cp"]
    assert decide_claims(metrics)[4].verdict == "undecided"
    assert decide_claims(metrics)[4].reason.endswith("table4/F/simclr-cp was not run")
    metrics["table2/mix-chan"] = {7: 0.3}
    assert decide_claims(metrics)[0].reason == "table2/mix-chan and table2/mix-mix+specaug share no seed"


def test_intervals_cover_the_test_clips_if_there_are_replicates() -> None:
    metrics = runs()
    draw = np.random.default_rng(0)
    replicates = {
        row: {seed: draw.normal(value, 0.05, 50) for seed, value in by.items()} for row, by in metrics.items()
    }
    sure, unsure = (decide_claims(metrics, given)[0] for given in (None, replicates))
    assert (sure.verdict, unsure.verdict) == ("supported", "undecided")
