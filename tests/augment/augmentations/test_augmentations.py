"""Augmentations: equality with a slow loop, independent draws, and independence of batches and workers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from sepscene.augment.augmentations.augmentation import Augmentation, Augmenter, build_augmentation, check_augmentation
from sepscene.augment.augmentations.built_in import SpecAugmentation
from sepscene.augment.augmentations.settings import (
    AugmentationChoice,
    Augmentations,
    CustomAugmentation,
    GainSettings,
    Needs,
    SpecAugment,
    streams_of,
)
from sepscene.augment.draws import Schedule, Stream, draw
from sepscene.models.config import Config, SepsceneError
from sepscene.models.names import AUGMENTATIONS

FRAMES = 24
BANDS = 16
SAMPLES = 200
ROWS = 40
SCHEDULE = Schedule(seed=3, clips=ROWS, epochs=2)
ALL = {"gain": {}, "mix-back": {}, "crop-resize": {}, "specaugment": {"time_mask_frames": 4, "warp_frames": 2}}


def chosen(given: dict[str, object]) -> dict[str, AugmentationChoice]:
    return TypeAdapter(dict[str, AugmentationChoice]).validate_python(TypeAdapter(Augmentations).validate_python(given))


def sounds(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((ROWS, 2, *shape)))


def columns(given: dict[str, object], rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    return draw(SCHEDULE, np.arange(ROWS) if rows is None else rows, (1.0,), streams_of(chosen(given)))


def _gain(wave: np.ndarray, u: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    db = -10 + 20 * u[0]
    return np.array([sample * 10 ** (db / 20) for sample in wave])


def _mix_back(wave: np.ndarray, u: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    level = 10 ** ((-30 + 24 * u[0]) / 20)
    return np.array([one + level * (all_of_it - one) for one, all_of_it in zip(wave, mixture, strict=True)])


def _crop_resize(patch: np.ndarray, u: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Bilinear, cell by cell, in float64."""
    frames, bands = patch.shape
    long = 0.6 + 0.4 * u[0]
    high = 0.6 + 0.4 * u[2]
    out = np.empty_like(patch)
    for frame in range(frames):
        for band in range(bands):
            t = u[1] * (1 - long) * (frames - 1) + frame * long
            f = u[3] * (1 - high) * (bands - 1) + band * high
            t0 = min(int(t), frames - 2)
            f0 = min(int(f), bands - 2)
            square = patch[t0 : t0 + 2, f0 : f0 + 2]
            out[frame, band] = np.array([1 - t + t0, t - t0]) @ square @ np.array([1 - f + f0, f - f0])
    return out


@pytest.mark.parametrize(("name", "slow"), [("gain", _gain), ("mix-back", _mix_back), ("crop-resize", _crop_resize)])
def test_each_equals_the_slow_loop(name: str, slow: object) -> None:
    given = {name: {}}
    drawn = columns({name: {}})
    built = build_augmentation(name, chosen(given)[name.replace("-", "_")])
    sound = sounds((SAMPLES,) if built.needs.sound == "waveform" else (FRAMES, BANDS))
    mixture = sounds((SAMPLES,)).flip(0) if built.needs.mixture else torch.zeros(ROWS, 2, 1)
    u_N2U = drawn[f"{name.replace('-', '_')}_u"].astype(np.float64).reshape(ROWS, 2, -1)
    fast = built(sound.flatten(0, 1), torch.from_numpy(u_N2U).flatten(0, 1), mixture.flatten(0, 1)).numpy()
    views = zip(sound.flatten(0, 1).numpy(), u_N2U.reshape(2 * ROWS, -1), mixture.flatten(0, 1).numpy(), strict=True)
    np.testing.assert_allclose(fast, np.stack([slow(*view) for view in views]), atol=1e-12)  # type: ignore[operator]


def test_a_view_that_is_the_mixture_has_nothing_to_mix_back() -> None:
    silence = torch.zeros(2, SAMPLES)
    back = build_augmentation("mix_back", chosen({"mix-back": {"highest_db": 0.0}})["mix_back"])
    wave = torch.randn(2, SAMPLES)
    assert torch.equal(back(wave, torch.rand(2, 1), silence), wave)
    loudest = back(wave, torch.ones(2, 1), wave.flip(0))
    torch.testing.assert_close(loudest, wave.flip(0))  # at 0 dB it is the mixture


def test_a_crop_of_the_whole_patch_changes_nothing() -> None:
    crop = build_augmentation(
        "crop_resize", chosen({"crop-resize": {"least_time": 1, "least_frequency": 1}})["crop_resize"]
    )
    patch = torch.randn(5, FRAMES, BANDS)
    assert torch.equal(crop(patch, torch.rand(5, 4), None), patch)
    assert torch.equal(crop(patch[:, :1, :1], torch.rand(5, 4), None), patch[:, :1, :1])
    assert crop(patch[:0], torch.rand(0, 4), None).shape == (0, FRAMES, BANDS)


def test_draws_do_not_depend_on_other_augmentations() -> None:
    views = draw(SCHEDULE, np.arange(ROWS), (1.0,), ())
    alone = {name: columns({name: {"probability": 0.5}}) for name in ALL}
    together = columns({name: {"probability": 0.5} for name in reversed(ALL)})
    assert {**views, **{n: c for drawn in alone.values() for n, c in drawn.items()}}.keys() == together.keys()
    for expected in (views, *alone.values()):
        for name, column in expected.items():
            np.testing.assert_array_equal(together[name], column, err_msg=name)
    before = draw(SCHEDULE, np.arange(ROWS), (1.0,))["specaugment_u"]
    np.testing.assert_array_equal(together["specaugment_u"], before)


def test_draws_are_independent_and_have_their_probability() -> None:
    many = Schedule(seed=0, clips=100_000, epochs=1)
    streams = (Stream("specaugment", 10, ((0, 0.25),)), Stream("gain", 1), Stream("mine", 3, ((0, 0.0), (0.5, 1.0))))
    drawn = draw(many, np.arange(many.rows), (1.0,), streams)
    assert "gain_on" not in drawn and drawn["mine_u"].dtype == np.float32 and drawn["mine_on"].shape == (many.rows, 2)
    np.testing.assert_allclose(drawn["specaugment_on"].mean(axis=0), 0.25, atol=0.007)  # 5 standard errors
    parts = drawn["mine_on"].reshape(4, -1).mean(axis=1)  # over the run: 0 to 1 in its first half, then 1
    np.testing.assert_allclose(parts, [0.25, 0.75, 1, 1], atol=0.01)
    wide = np.column_stack([drawn[name] for name in ("specaugment_u", "gain_u", "mine_u", "specaugment_on")])
    correlation = np.corrcoef(wide.T.astype(np.float64)) - np.eye(wide.shape[1])
    assert np.abs(correlation).max() < 0.017  # over 5 standard errors


def test_a_share_of_the_run_is_a_share_of_its_rows() -> None:
    stream = Stream("mine", 1, ((0.0, 0.0), (1.0, 1.0)))
    np.testing.assert_allclose(stream.probability(np.array([0, 0.3, 1.0])), [0, 0.3, 1])
    some = np.array([70, 3, 9])
    whole = draw(SCHEDULE, np.arange(SCHEDULE.rows), (1.0,), (stream,))
    for name, column in draw(SCHEDULE, some, (1.0,), (stream,)).items():
        np.testing.assert_array_equal(column, whole[name][some])


def test_views_do_not_depend_on_the_split_of_rows_over_workers() -> None:
    """Halves, uneven parts and single rows give bit-identical views to the whole batch."""
    given = {name: {**settings, "probability": 0.5} for name, settings in ALL.items()}  # type: ignore[dict-item]
    augment = Augmenter(chosen(given))
    drawn = columns(given)
    wave = sounds((SAMPLES,)).float()
    logmel = sounds((FRAMES, BANDS)).float()
    mixture = sounds((SAMPLES,)).float() + 1

    def views(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        mine = {name: column[rows] for name, column in drawn.items()}
        return augment("waveform", wave[rows], mine, mixture[rows]), augment("log-mel", logmel[rows], mine)

    whole = views(slice(None))
    assert not torch.equal(whole[0], wave) and not torch.equal(whole[1], logmel)
    cuts = [0, 20, 21, 27, ROWS]
    parts = [views(slice(*ends)) for ends in pairwise(cuts)]
    for kind, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[kind] for part in parts]), expected)
    off = ~drawn["gain_on"] & ~drawn["mix_back_on"]
    assert off.any() and torch.equal(whole[0][torch.from_numpy(off)], wave[torch.from_numpy(off)])


def test_the_augmenter_applies_specaugment_to_each_view() -> None:
    drawn = columns({"specaugment": {}})
    logmel = sounds((96, 64)).float()
    uniforms = torch.from_numpy(drawn["specaugment_u"]).unflatten(1, (2, -1))
    specaugment = SpecAugmentation(SpecAugment())
    expected = torch.stack([specaugment(logmel[:, view], uniforms[:, view], None) for view in range(2)], dim=1)
    assert torch.equal(Augmenter(chosen({"specaugment": {}}))("log-mel", logmel, drawn), expected)


def test_two_augmentations_of_one_kind_have_different_draws() -> None:
    given = {"gain": {"db": 3}, "second": {"use": "gain", "db": 6}, "crop_resize": {}}
    assert [one.use for one in chosen(given).values()] == ["gain", "gain", "crop-resize"]
    drawn = columns(given)
    assert not np.intersect1d(drawn["gain_u"], drawn["second_u"]).size


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gian": {}}, r"no augmentation 'gian' \(did you mean gain\?\).*give it a `use`"),
        ({"mine": {"use": "gian"}}, r"no augmentation 'gian' \(did you mean gain\?\); known names: specaugment, gain"),
        ({"gain": {"db": 0}}, "greater than 0"),
        ({"gain": {"dB": 3}}, "dB"),
        ({"gain": {"probability": 1.5}}, "less than or equal to 1"),
        ({"gain": {"probability": 0.5, "curriculum": [{"at": 0, "probability": 1}]}}, "give only one"),
        ({"gain": {"curriculum": [{"at": 1, "probability": 1}, {"at": 0, "probability": 1}]}}, "must be in order"),
        ({"mix-back": {"lowest_db": -3, "highest_db": -9}}, r"lowest_db -3 is above highest_db -9"),
        ({"crop-resize": {"least_time": 0}}, "greater than 0"),
        ({"crop_1": {"use": "gain"}}, "cannot be called 'crop_1'"),
        ({"A-b": {"use": "gain"}}, "cannot be called 'A-b'"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        chosen(given)


def test_every_short_name_is_an_augmentation_with_its_needs() -> None:
    for name in AUGMENTATIONS:
        choice = chosen({name: {}})[name.replace("-", "_")]
        built = build_augmentation(name, choice)
        assert built.needs == choice.needs and type(built).Config is type(choice)


class Louder(Augmentation):
    """Doubles the level of some views."""

    class Config(Config):
        times: float = 2.0

    needs = Needs("waveform", uniforms=1)

    def __call__(self, sound: torch.Tensor, uniforms_XU: torch.Tensor, mixture_XP: torch.Tensor | None) -> torch.Tensor:
        return torch.where(uniforms_XU < 0.5, self.config.times * sound, sound)


class Alone(Louder):
    """Draws its own random numbers."""

    def __call__(self, sound: torch.Tensor, uniforms_XU: torch.Tensor, mixture_XP: torch.Tensor | None) -> torch.Tensor:
        return sound + torch.randn_like(sound)


class Together(Louder):
    """Makes a view depend on other views."""

    def __call__(self, sound: torch.Tensor, uniforms_XU: torch.Tensor, mixture_XP: torch.Tensor | None) -> torch.Tensor:
        return sound - sound.mean(0)


class Shorter(Louder):
    """Returns another shape."""

    def __call__(self, sound: torch.Tensor, uniforms_XU: torch.Tensor, mixture_XP: torch.Tensor | None) -> torch.Tensor:
        return sound[:, 1:]


class Careless(Louder):
    """Declares no uniforms."""

    needs = Needs("waveform", uniforms=0)


def test_custom_augmentations_are_tested_before_a_run_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEPSCENE_TRUSTED_CODE", raising=False)
    check_augmentation("mine", CustomAugmentation.model_validate({"use": Louder, "times": 3}), (SAMPLES,))
    for wrong, says in (
        (Alone, "draws its own random numbers"),
        (Together, "depend on other views"),
        (Shorter, "of the shape of its input"),
        (Careless, "uniforms must be at least 1"),
        (GainSettings, "needs a class attribute `needs`|is not a subclass of"),
    ):
        with pytest.raises(SepsceneError, match=says):
            check_augmentation("mine", CustomAugmentation(use=wrong), (SAMPLES,))
    with pytest.raises(SepsceneError, match=r"augmentations\.mine \(.*:Louder\): times: "):
        build_augmentation("mine", CustomAugmentation.model_validate({"use": Louder, "times": "many"}))
