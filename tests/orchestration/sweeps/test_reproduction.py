"""The parts of a reproduction: its trials, and how their results are reported."""

from pathlib import Path

import pytest

from sepscene.orchestration.presets import SCALES, named_experiment
from sepscene.orchestration.records.results import EncoderResult, LedgerResult, Metric, RunResults

pytestmark = pytest.mark.slow  # imports Ray


def results(rows: int = 100, quarantined: dict[str, str] | None = None) -> RunResults:
    """A finished run of the first row of Table 2, which also evaluates the untrained encoder."""
    metrics = (("mix-mix", 0.3), ("untrained", 0.1))
    return RunResults(
        run_id="table2-mix-mix,seed=1",
        experiment="table2/mix-mix",
        table_row="table2/mix-mix",
        scale="tiny",
        seed=1,
        started="2026-11-22T17:02:11+00:00",
        seconds=1.0,
        encoders=tuple(EncoderResult(name=name, metrics={"shallow_map": Metric(value=v)}) for name, v in metrics),
        ledger=LedgerResult(rows=rows, consumed=rows, lost=0, twice=0, quarantined=quarantined or {}),
        data={"training clips": "512"},
    )


def test_a_trial_is_the_row_with_the_shared_parts_and_the_baseline_row_evaluates_the_untrained_encoder() -> None:
    from sepscene.orchestration.sweeps.reproduction import _trial

    shared = SCALES["tiny"]().changed({"data.root": "/scenes", "store.mode": "prefill", "evaluation.baselines": False})
    baseline = _trial(named_experiment("table2/mix-mix", "tiny"), shared, 2)
    other = _trial(named_experiment("table4/S2+N/simclr-cp", "tiny"), shared, 0)
    assert (baseline.name, baseline.seed, baseline.settings) == ("table2-mix-mix,seed=2", 2, {"row": "table2/mix-mix"})
    assert baseline.experiment.seed == 2 and baseline.experiment.evaluation.baselines
    assert not other.experiment.evaluation.baselines and other.experiment.views.combination == ("S2", "N")
    assert (other.experiment.data.root, other.experiment.store.mode) == ("/scenes", "prefill")


def test_a_row_that_is_finished_under_its_other_name_is_not_run_again(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.reproduction import _is_finished_under_other_name

    done = tmp_path / "trials" / "table2-mix-chan+specaug,seed=0"
    done.mkdir(parents=True)
    shared, other = (named_experiment(row, "tiny") for row in ("table4/S2/simclr", "table4/N/simclr"))
    assert not _is_finished_under_other_name(shared, 0, tmp_path)
    (done / "finished").touch()
    assert _is_finished_under_other_name(shared, 0, tmp_path) and not _is_finished_under_other_name(shared, 1, tmp_path)
    assert not _is_finished_under_other_name(other, 0, tmp_path)


def test_a_run_is_reported_as_a_row_with_its_seed_and_its_untrained_encoder() -> None:
    from sepscene.orchestration.sweeps.reproduction import _reproduced

    run = _reproduced(results(quarantined={"a.wav": "truncated"}), "trials/a")
    assert (run.row, run.seed, run.metric.value) == ("table2/mix-mix", 1, 0.3)
    assert run.untrained is not None and run.untrained.value == 0.1
    assert run.differs == ("unreadable clips left out: 1",)
    assert run.run_dir == "trials/a"
    assert _reproduced(results(), "trials/a").differs == ()


def test_differences_from_the_paper_name_clips_steps_networks_and_ladder() -> None:
    from sepscene.orchestration.sweeps.reproduction import _differences

    text = "; ".join(_differences(SCALES["tiny"](), [results(rows=100)]))
    assert "512 clips of scenes instead of about 2,000,000 of AudioSet" in text
    assert "global batch 64 and 2 steps" in text  # 100 rows: the second step has a smaller batch
    assert "a separator of 1 x 8 blocks of width 32 and 64 instead of 4 x 8 blocks of width 256 and 512" in text
    full = "; ".join(_differences(SCALES["small"](), []))
    assert "a separator of 4 x 8 blocks of width 256 and 512;" in full and "? clips" in full
    provided = SCALES["tiny"]().changed({"separator.checkpoints": {"S2": "/mine", "N": "/mine"}})
    assert "separators provided by the user, not trained" in "; ".join(_differences(provided, []))
