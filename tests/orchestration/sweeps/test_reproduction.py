"""A reproduction's own parts: which runs it makes, and what it says of them."""

from pathlib import Path

import pytest

from sepscene.orchestration.presets import SCALES, named_experiment
from sepscene.orchestration.records.results import EncoderResult, LedgerResult, Metric, RunResults

pytestmark = pytest.mark.slow  # imports Ray


def results(rows: int = 100, quarantined: dict[str, str] | None = None) -> RunResults:
    """A finished run of Table 2's first row, which evaluates the untrained encoder as well."""
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


def test_a_trial_is_the_row_on_the_shared_parts_and_the_first_one_evaluates_the_floor() -> None:
    from sepscene.orchestration.sweeps.reproduction import _trial

    shared = SCALES["tiny"]().changed({"data.root": "/scenes", "store.mode": "prefill", "evaluation.baselines": False})
    floor = _trial(named_experiment("table2/mix-mix", "tiny"), shared, 2)
    other = _trial(named_experiment("table4/S2+N/simclr-cp", "tiny"), shared, 0)
    assert (floor.name, floor.seed, floor.settings) == ("table2-mix-mix,seed=2", 2, {"row": "table2/mix-mix"})
    assert floor.experiment is not None and other.experiment is not None
    assert floor.experiment.seed == 2 and floor.experiment.evaluation.baselines
    assert not other.experiment.evaluation.baselines and other.experiment.views.combination == ("S2", "N")
    assert (other.experiment.data.root, other.experiment.store.mode) == ("/scenes", "prefill")


def test_a_row_that_is_finished_under_its_other_name_is_not_run_again(tmp_path: Path) -> None:
    from sepscene.orchestration.sweeps.reproduction import _done

    done = tmp_path / "trials" / "table2-mix-chan+specaug,seed=0"
    done.mkdir(parents=True)
    twin, other = (named_experiment(row, "tiny") for row in ("table4/S2/simclr", "table4/N/simclr"))
    assert not _done(twin, 0, tmp_path)
    (done / "finished").touch()
    assert _done(twin, 0, tmp_path) and not _done(twin, 1, tmp_path) and not _done(other, 0, tmp_path)


def test_what_a_run_leaves_is_a_row_with_its_seed_and_its_floor() -> None:
    from sepscene.orchestration.sweeps.reproduction import _reproduced

    run = _reproduced(results(quarantined={"a.wav": "truncated"}))
    assert (run.row, run.seed, run.metric.value) == ("table2/mix-mix", 1, 0.3)
    assert run.untrained is not None and run.untrained.value == 0.1
    assert run.differs == ("unreadable clips left out: 1",)
    assert run.run_dir == "trials/table2-mix-mix,seed=1"
    assert _reproduced(results()).differs == ()


def test_differences_from_the_paper_name_clips_steps_networks_and_ladder() -> None:
    from sepscene.orchestration.sweeps.reproduction import _differences

    said = "; ".join(_differences(SCALES["tiny"](), [results(rows=100)]))
    assert "512 clips of scenes instead of about 2,000,000 of AudioSet" in said
    assert "global batch 64 and 2 steps" in said  # 100 rows: the second step is not full, and trains all the same
    assert "a separator of 1 x 8 blocks of width 32 and 64 instead of 4 x 8 blocks of width 256 and 512" in said
    full = "; ".join(_differences(SCALES["small"](), []))
    assert "a separator of 4 x 8 blocks of width 256 and 512;" in full and "? clips" in full
    ready = SCALES["tiny"]().changed({"separator.checkpoints": {"S2": "/mine", "N": "/mine"}})
    assert "separators that were given" in "; ".join(_differences(ready, []))
