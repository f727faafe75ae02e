"""How much of h the background and the level explain, on representations that contain exactly these."""

import numpy as np
import pytest

from sepscene.tasks.evaluation.shortcuts import WARNING_SHARE, Shortcuts, clip_features, explained_share, find_shortcuts


def clips(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-mels of 50 frames and 8 bands, each with its own background and a short loud event; and the backgrounds."""
    rng = np.random.default_rng(seed)
    background_NF = rng.normal(-3, 1, (count, 8))
    logmel_NLF = background_NF[:, None] + 0.01 * rng.standard_normal((count, 50, 8))
    logmel_NLF[:, 10:25] += rng.uniform(0, 6, (count, 1, 8))
    return logmel_NLF.astype(np.float16), background_NF


def test_the_background_is_what_is_always_present() -> None:
    logmel_NLF, background_NF = clips(20, 0)
    features = clip_features(logmel_NLF)
    np.testing.assert_allclose(features.background_NF, background_NF, atol=0.05)
    np.testing.assert_allclose(features.level_N, logmel_NLF.astype(np.float64).mean(axis=(1, 2)), rtol=1e-6)
    some = clip_features([logmel_NLF[0], logmel_NLF[1, :30]])
    np.testing.assert_array_equal(some.background_NF[0], features.of([0]).background_NF[0])


def test_only_a_representation_of_the_background_is_reported() -> None:
    train_clips, train_NF = clips(300, 1)
    test_clips, test_NF = clips(200, 2)
    train = clip_features(train_clips)
    test = clip_features(test_clips)
    mix_FD = np.random.default_rng(3).standard_normal((8, 16))
    shortcut = find_shortcuts(train, train_NF @ mix_FD, test, test_NF @ mix_FD)
    assert shortcut.background > 0.98 and shortcut.level < 0.3 and shortcut.rank == pytest.approx(8, abs=1)
    assert (
        "The background of a clip explains over 35% of h" in shortcut.warning and "tp_delta_seconds" in shortcut.warning
    )
    other = [np.random.default_rng(seed).standard_normal((count, 16)) for seed, count in ((4, 300), (5, 200))]
    nothing = find_shortcuts(train, other[0], test, other[1])
    assert max(nothing.background, nothing.level) < 0.05 and nothing.warning == ""


def test_half_of_the_variance() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((4_000, 1))
    noise = rng.standard_normal((4_000, 1))
    share = explained_share(x[:2_000], (x + noise)[:2_000], x[2_000:], (x + noise)[2_000:])
    assert share == pytest.approx(0.5, abs=0.04)


def test_a_warning_names_all_shortcuts() -> None:
    assert "background and the level" in Shortcuts(WARNING_SHARE + 0.1, WARNING_SHARE + 0.1, 3.0).warning
    assert Shortcuts(WARNING_SHARE, WARNING_SHARE, 3.0).warning == ""
