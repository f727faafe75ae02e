"""The channel rule and 16-bit sound."""

import numpy as np
import pytest
from pydantic import ValidationError

from sepscene.augment.draws import Schedule
from sepscene.augment.views import MIXTURE, Views, choose_channels, from_pcm, levels_db, to_pcm


def test_pcm_is_exact_both_ways_and_saturates() -> None:
    every = np.arange(-32767, 32768).astype(np.int16)
    np.testing.assert_array_equal(to_pcm(from_pcm(every)), every)
    np.testing.assert_array_equal(to_pcm(np.array([-3.0, 3.0])), [-32767, 32767])


def test_level_of_a_full_scale_sine_is_minus_three() -> None:
    sine = to_pcm(np.sin(np.arange(16000) * 0.1)[None])
    assert levels_db(sine)[0] == pytest.approx(-3.01, abs=0.01)
    assert levels_db(np.zeros((1, 10), np.int16))[0] == -200


def test_uniform_choice_covers_the_audible_channels_evenly() -> None:
    levels = np.array([-20.0, -90.0, -30.0, -59.0])
    uniforms = (np.arange(3000) + 0.5) / 3000
    chosen = [choose_channels(levels, u, 0.0, Views(combination=("N",)))[1] for u in uniforms]
    assert np.bincount(chosen, minlength=4).tolist() == [1000, 0, 1000, 1000]


def test_all_silent_gives_the_mixture() -> None:
    assert choose_channels(np.array([-70.0, -80.0]), 0.5, 0.5, Views()) == (MIXTURE, MIXTURE)


def test_chan_chan_uses_two_different_channels() -> None:
    views = Views(pair="chan-chan")
    for u, v in np.random.default_rng(0).random((200, 2)):
        first, second = choose_channels(np.array([-20.0, -30.0, -40.0]), u, v, views)
        assert first != second and MIXTURE not in (first, second)
    assert choose_channels(np.array([-20.0, -70.0]), 0.9, 0.1, views) == (0, MIXTURE)


def test_the_rules_loudest_and_softmax_energy_prefer_louder_channels() -> None:
    levels = np.array([-40.0, -20.0])
    assert choose_channels(levels, 0.0, 0.0, Views(channel="loudest"))[1] == 1
    uniforms = (np.arange(1000) + 0.5) / 1000
    soft = [choose_channels(levels, u, 0.0, Views(channel="softmax-energy"))[1] for u in uniforms]
    share = np.exp([1 / 101, 100 / 101])
    assert np.mean(soft) == pytest.approx((share / share.sum())[1], abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"combination": ()}, "name at least one"),
        ({"combination": ("N",), "weights": (1.0, 2.0)}, "one probability for each"),
        ({"combination": ("N", "F"), "weights": (-1.0, 2.0)}, "must not be negative"),
        ({"temperature": 1}, "Extra inputs"),
        ({"curriculum": [{"at": 0, "weights": [1, 2]}]}, "curriculum at 0 must have one probability for each"),
        ({"curriculum": [{"at": 0.5, "weights": [0]}]}, "curriculum at 0.5 must not be negative and must not all"),
        ({"curriculum": [{"at": 0.5, "weights": [1]}, {"at": 0.5, "weights": [1]}]}, "must be in order"),
        ({"weights": (1.0,), "curriculum": [{"at": 0, "weights": [1]}]}, "give only one"),
    ],
)
def test_bad_views_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Views.model_validate(fields)


LADDER = Views.model_validate(
    {
        "combination": ["N", "F", "S2"],
        "curriculum": [
            {"at": 0.25, "weights": [1, 0, 0]},
            {"at": 0.75, "weights": [0, 2, 2]},
        ],
    }
)
"""First the untrained separator, then increasingly the trained ones."""


def test_a_curriculum_is_linear_between_its_points_and_constant_beyond() -> None:
    done = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    expected = [[1, 0, 0], [1, 0, 0], [0.5, 0.25, 0.25], [0, 0.5, 0.5], [0, 0.5, 0.5]]
    np.testing.assert_allclose(LADDER.weights_at(done), expected, atol=1e-15)
    np.testing.assert_allclose(LADDER.processor_weights, [0.5, 0.25, 0.25], atol=1e-3)


def test_the_processor_follows_the_curriculum() -> None:
    schedule = Schedule(seed=1, clips=40_000, epochs=2)
    rows = np.arange(schedule.rows)
    columns = LADDER.draw(schedule, rows)
    for begin, end, expected in ((0.0, 0.25, [1, 0, 0]), (0.49, 0.51, [0.5, 0.25, 0.25]), (0.75, 1.0, [0, 0.5, 0.5])):
        part = columns["processor"][(rows >= begin * schedule.rows) & (rows < end * schedule.rows)]
        np.testing.assert_allclose(np.bincount(part, minlength=3) / len(part), expected, atol=0.05)
    some = np.array([70_000, 3, 41_111])
    for name, column in LADDER.draw(schedule, some).items():
        np.testing.assert_array_equal(column, columns[name][some], err_msg=name)


def test_a_curriculum_changes_nothing_but_the_processor() -> None:
    schedule = Schedule(seed=1, clips=100, epochs=2)
    rows = np.arange(200)
    plain = Views(combination=LADDER.combination).draw(schedule, rows)
    for name, column in LADDER.draw(schedule, rows).items():
        assert name == "processor" or (column == plain[name]).all()
