"""Draws: they are stateless and uniform, and every epoch is a permutation."""

import numpy as np
import pytest

from sepscene.augment.draws import Schedule, _mix, crop_starts, draw


def test_mix_is_splitmix64() -> None:
    """The first outputs of SplitMix64 with seed 0, as published with the generator."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.arange(3, dtype=np.uint64) * golden
    assert [int(word) for word in _mix(state)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_each_epoch_is_a_fresh_permutation() -> None:
    schedule = Schedule(seed=3, clips=101, epochs=4)
    clips = schedule.clip(np.arange(schedule.rows)).reshape(4, 101)
    for epoch in clips:
        assert sorted(epoch) == list(range(101))
    assert len({tuple(epoch) for epoch in clips}) == 4


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    schedule = Schedule(seed=7, clips=50, epochs=3)
    whole = draw(schedule, np.arange(150), (0.5, 0.5))
    some = np.array([149, 3, 77])
    part = draw(schedule, some, (0.5, 0.5))
    for name, column in part.items():
        np.testing.assert_array_equal(column, whole[name][some])


def test_processors_follow_their_weights_and_columns_are_independent() -> None:
    schedule = Schedule(seed=0, clips=200_000, epochs=1)
    columns = draw(schedule, np.arange(200_000), (1, 2, 1))
    share = np.bincount(columns["processor"], minlength=3) / 200_000
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.005)  # 5 standard errors
    uniforms = np.column_stack([columns[n] for n in ("channel_u", "crop_1_u", "crop_2_u")] + [columns["specaugment_u"]])
    np.testing.assert_allclose(uniforms.mean(axis=0), 0.5, atol=0.004)
    np.testing.assert_allclose(uniforms.var(axis=0), 1 / 12, atol=0.002)
    correlation = np.corrcoef(uniforms.T) - np.eye(uniforms.shape[1])
    assert np.abs(correlation).max() < 0.013  # over 5 standard errors


def test_a_uniform_never_rounds_up_to_one() -> None:
    """Row 1,730,969 of seed 0 has a uniform of at least 1 - 2^-25, which rounds to 1 in float32."""
    columns = draw(Schedule(seed=0, clips=2_000_000, epochs=1), np.array([1_730_969]), (1,))
    assert columns["specaugment_u"].max() == np.float32(1 - 2**-24)


def test_another_seed_gives_other_draws() -> None:
    rows = np.arange(100)
    one, two = (draw(Schedule(seed=s, clips=100, epochs=1), rows, (1,)) for s in (0, 1))
    assert (one["clip"] != two["clip"]).any()
    assert not np.intersect1d(one["crop_1_u"], two["crop_1_u"]).size


@pytest.mark.parametrize("delta", [0, 100, 160_000])
def test_crops_stay_inside_the_clip_and_within_the_distance(delta: int) -> None:
    u1, u2 = np.random.default_rng(0).random((2, 10_000))
    u1[:2] = [0, 1 - 2**-53]
    u2[:2] = [1 - 2**-53, 0]
    start_1, start_2 = crop_starts(u1, u2, 160_000, 15_360, delta)
    for start in (start_1, start_2):
        assert start.min() >= 0 and start.max() <= 160_000 - 15_360
    assert np.abs(start_1 - start_2).max() <= delta


def test_a_clip_as_long_as_the_crop_starts_at_zero() -> None:
    start_1, start_2 = crop_starts(np.array([0.99]), np.array([0.99]), 100, 100, 50)
    assert start_1 == start_2 == 0
