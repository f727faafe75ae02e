"""Plans are arithmetic: each estimate is checked against a calculation by hand or against the real draws."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from sepscene.augment.draws import Schedule, draw
from sepscene.models.config import SepsceneError
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.formatting import duration, quantity
from sepscene.orchestration.planning.plan import Calibration, Work, plan, stage_seconds, work_of
from sepscene.orchestration.planning.plan_table import plan_table
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.training.flops import separation_flops

MEASURED = Calibration(
    decode_seconds=0.004,
    stored_seconds=0.001,
    separation_seconds={"S2": 0.05, "F": 0.05, "N": 0.05},
    put_seconds=0.003,
    train_seconds=0.002,
    separation_rows=16,
    train_rows=256,
    separation_device="L4",
    train_device="H100",
    cores=8,
)
GPUS = {
    "resources.trainers": 4,
    "resources.trainer_gpus": 1,
    "resources.separation_actors": 10,
    "resources.separation_gpus": 1,
    "resources.readers": 40,
    "training.epochs": 5,
    "training.service_rows": 16,
}


def cluster(**changes):
    """4 trainers with a GPU each, 10 actors, 40 readers; 3 processors; 5 epochs."""
    return named_experiment("table4/S2+F+N/simclr-cp", "tiny").changed(GPUS | changes)


def test_rows_hours_and_bytes():
    found = plan(cluster(), MEASURED, clips=1000)
    assert (found.clips, found.rows, found.steps) == (1000, 5000, 79)  # global batch 64
    assert found.clip_hours == pytest.approx(5000 * 10 / 3600)
    assert found.view_hours == pytest.approx(2 * 5000 * 0.96 / 3600)
    assert found.stored_row_bytes == 2 * 2 * 15_360 * 2
    assert found.live_row_bytes == 160_000 * 2 + 61_440


def test_the_slowest_stage_determines_the_duration_of_live_mode():
    live = plan(cluster(), MEASURED, clips=1000).mode("live")
    assert live.bottleneck == "separation"
    assert live.seconds == pytest.approx(5000 * 0.05 / 10)
    assert live.separated == 5000
    assert live.busy_gpu_hours == pytest.approx((5000 * 0.05 + 5000 * 0.002) / 3600)
    assert live.held_gpu_hours == pytest.approx(live.seconds * 14 / 3600)
    assert live.store_bytes == 0
    assert live.moved_bytes == 5000 * (320_000 + 61_440)


def test_read_through_separates_the_new_draws():
    """The expected number of new (clip, processor) pairs in each epoch agrees with the schedule's draws."""
    clips = 4000
    epochs = 5
    rows = np.arange(clips * epochs)
    draws = draw(Schedule(seed=3, clips=clips, epochs=epochs), rows, (1.0, 1.0, 1.0))
    seen: set[tuple[int, int]] = set()
    for epoch, work in enumerate(work_of("read-through", cluster(), clips)):
        here = draws["epoch"] == epoch
        pairs = set(zip(draws["clip"][here].tolist(), draws["processor"][here].tolist(), strict=True))
        assert work.live == pytest.approx(len(pairs - seen), abs=4 * np.sqrt(clips * 0.25))
        assert work.live + work.stored == pytest.approx(clips)
        seen |= pairs


def test_read_through_by_hand():
    mode = plan(cluster(**{"training.epochs": 2}), MEASURED, clips=900).mode("read-through")
    assert mode.separated == pytest.approx(900 + 600)  # two thirds get another processor in the second epoch
    separation = (0.05 + 0.003) / 10
    assert mode.seconds == pytest.approx(900 * separation + 600 * separation)
    assert mode.store_bytes == pytest.approx((1500 * 2 + 900) * 320_000)
    assert mode.moved_bytes == pytest.approx(1500 * (320_000 + 61_440) + 300 * 2 * 61_440)


def test_prefill_by_hand():
    mode = plan(cluster(), MEASURED, clips=1000).mode("prefill")
    assert mode.separated == 3000
    assert mode.seconds == pytest.approx(3000 * (0.05 + 0.003) / 10 + 5000 * 0.002 / 4)
    assert mode.busy_gpu_hours == pytest.approx((3000 * 0.053 + 5000 * 0.002) / 3600)


def test_prefill_reserves_gpus_for_actors_first_and_for_trainers_after_it():
    mode = plan(cluster(), MEASURED, clips=1000).mode("prefill")
    filling = 3000 * 0.053 / 10
    training = 5000 * 0.002 / 4
    assert mode.held_gpu_hours == pytest.approx((filling * 10 + training * 4) / 3600)  # 169.0 GPU-s, not 257.6
    for name in ("live", "read-through"):
        both = plan(cluster(), MEASURED, clips=1000).mode(name)
        assert both.held_gpu_hours == pytest.approx(both.seconds * 14 / 3600)
    mixtures = plan(cluster(**{"views.pair": "mix-mix"}), MEASURED, clips=1000).mode("prefill")
    assert mixtures.held_gpu_hours == pytest.approx(mixtures.seconds * 4 / 3600)


def test_total_operations_and_bytes_read():
    found = plan(cluster(), MEASURED, clips=1000)
    one = found.processors[0].flops
    training = 5000 * found.train_flops_per_row
    assert one is not None
    assert found.mode("live").flops == pytest.approx(5000 * one + training)
    assert found.mode("prefill").flops == pytest.approx(3000 * one + training)
    crop = 15_360 + cluster().store.settings.segment_samples - 1
    assert found.mode("live").read_bytes == 0
    assert found.mode("prefill").read_bytes == 5000 * 2 * 2 * crop
    fresh = found.mode("read-through").separated
    assert found.mode("read-through").read_bytes == pytest.approx((5000 - fresh) * 2 * 2 * crop)


def different(tmp_path, **changes):
    """S2 with the ladder's network, F with three sources and other sizes; the OR rule draws F one time in four."""
    shapes = {"S2": TDCNppConfig.tiny(), "F": TDCNppConfig.tiny(sources=3, blocks=4)}
    for name, shape in shapes.items():
        save_separator(TDCNpp(shape), tmp_path / name, {})
    folders = {name: str(tmp_path / name) for name in shapes}
    return cluster(
        **{"separator.checkpoints": folders, "views.combination": ["S2", "F"], "views.weights": [3, 1], **changes}
    )


def test_different_separators_are_weighted_by_their_probabilities(tmp_path):
    experiment = different(tmp_path)
    measured = MEASURED.changed({"separation_seconds": {"S2": 0.04, "F": 0.08}})
    found = plan(experiment, measured, clips=1000)
    assert [p.sources for p in found.processors] == [2, 3]
    flops = [p.flops for p in found.processors]
    shapes = TDCNppConfig.tiny(), TDCNppConfig.tiny(sources=3, blocks=4)
    assert flops == [separation_flops(shape, 160_000) for shape in shapes]
    assert found.mode("live").seconds == pytest.approx(5000 * 0.05 / 10)  # 3/4 of 0.04, 1/4 of 0.08
    training = 5000 * found.train_flops_per_row
    assert found.mode("live").flops == pytest.approx(5000 * (0.75 * flops[0] + 0.25 * flops[1]) + training)
    filled = found.mode("prefill")  # each clip by both
    assert filled.seconds == pytest.approx(2000 * (0.06 + 0.003) / 10 + 5000 * 0.002 / 4)
    assert filled.store_bytes == pytest.approx((1000 * 2 + 1000 * 3 + 1000) * 320_000)
    first, *_, last = work_of("read-through", experiment, 1000)
    assert first.shares == pytest.approx((750, 250))
    assert last.shares == pytest.approx((1000 * 0.75 * 0.25**4, 1000 * 0.25 * 0.75**4))


def test_the_operations_of_an_imported_program_are_unknown(tmp_path):
    experiment = different(tmp_path)
    card = json.loads((tmp_path / "F" / "config.json").read_text())
    program = {"sample_rate": 16_000, "sources": 4, "kind": "exported"}
    (tmp_path / "F" / "config.json").write_text(json.dumps(card | {"architecture": "program", "config": program}))
    found = plan(experiment, MEASURED, clips=1000)
    assert found.processors[1].sources == 4 and found.mode("live").flops is None
    assert "F unknown FLOP per clip" in printed(MEASURED, experiment)


def test_many_epochs_approach_one_separation_per_processor():
    few, many = (plan(cluster(**{"training.epochs": n}), MEASURED, clips=100) for n in (1, 200))
    assert few.mode("read-through").separated == pytest.approx(100)
    assert many.mode("read-through").separated == pytest.approx(300)
    assert many.mode("live").separated == 20_000


def test_recommended_actors_balance_the_stages():
    found = plan(cluster(), MEASURED, clips=1000)
    assert found.actors_per_trainer == pytest.approx(0.05 / 0.002)
    assert found.actors == 100
    assert found.readers == 8
    balanced = cluster(**{"resources.separation_actors": found.actors, "resources.readers": found.readers})
    seconds = stage_seconds(balanced, MEASURED, Work(1000, 0, 1000, kept=False))
    assert seconds["separation"] == pytest.approx(seconds["trainers"]) == pytest.approx(seconds["readers"])


def test_a_fraction_of_a_gpu_has_that_fraction_of_its_speed():
    whole = stage_seconds(cluster(), MEASURED, Work(100, 0, 100, kept=False))
    quarter = cluster(**{"resources.separation_gpus": 0.25, "resources.trainer_gpus": 0.5})
    shared = stage_seconds(quarter, MEASURED, Work(100, 0, 100, kept=False))
    assert shared["separation"] == pytest.approx(4 * whole["separation"])
    assert shared["trainers"] == pytest.approx(2 * whole["trainers"])


def test_without_gpus_all_stages_share_the_cores():
    here = MEASURED.changed({"cores": 2})
    experiment = cluster(**{"resources.trainer_gpus": 0, "resources.separation_gpus": 0})
    experiment = experiment.changed(
        {"resources.trainer_cpus": 0.1, "resources.separation_cpus": 0.1, "resources.reader_cpus": 0.01}
    )
    live = plan(experiment, here, clips=1000).mode("live")
    assert live.bottleneck == "CPU cores"
    assert live.seconds == pytest.approx(5000 * (0.004 + 0.05 + 0.002) / 2)
    assert live.busy_gpu_hours == live.held_gpu_hours == 0


def test_mix_mix_separates_nothing():
    experiment = cluster(**{"views.pair": "mix-mix"})
    found = plan(experiment, MEASURED, clips=1000)
    assert found.separator_training_flops == found.separator_training_seconds == 0
    for mode in found.modes:
        assert mode.separated == mode.store_bytes == 0
        assert mode.seconds == pytest.approx(5000 * 0.002 / 4)
    text = printed(MEASURED, experiment)
    assert "mix-mix separates nothing" in text and "separation actors" not in text


def test_the_training_of_the_separator(tmp_path):
    found = plan(cluster(), MEASURED, clips=1000)
    clip_equivalents = 3 * 600 * 8 * 0.2  # forward and backward; 600 steps of 8 mixtures of 2 s
    assert found.separator_training_flops == pytest.approx(clip_equivalents * found.processors[0].flops, rel=1e-3)
    assert found.separator_training_seconds == pytest.approx(clip_equivalents * 0.05 / 4, rel=1e-3)
    assert plan(different(tmp_path), MEASURED, clips=1000).separator_training_flops == 0


def test_the_number_of_clips_must_be_known():
    assert plan(named_experiment("demo", "tiny"), MEASURED).clips == named_experiment("demo", "tiny").data.scenes_train
    with pytest.raises(SepsceneError, match=r"unknown for data.format 'audioset': give `clips`"):
        plan(named_experiment("demo", "paper"), MEASURED)


def printed(calibration: Calibration, experiment: Experiment | None = None) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(plan_table(plan(experiment or cluster(), calibration, clips=1000)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_contains_all_estimates():
    text = printed(MEASURED)
    for part in (
        "5,000 = 1,000 clips x 5 epochs",
        "381 kB per live row",
        "read-through *",
        "separation 50 (L4)",
        "FLOP",
        "read",
    ):
        assert part in text
    assert "add 90 separation actors (resources.separation_actors=100)" in text
    assert "measured on a CPU" not in text


def test_the_table_warns_of_a_calibration_on_other_hardware():
    on_cpu = MEASURED.changed({"train_device": "CPU"})
    assert "measured on a CPU although GPUs are requested" in printed(on_cpu)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 "), (12, "12 "), (999, "999 "), (61_440, "61.4 k"), (1.386e11, "139 G"), (9e17, "900 P")],
)
def test_quantities(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min"), (12 * 86_400 + 3 * 3600, "12 days 3 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
