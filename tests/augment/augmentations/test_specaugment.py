"""SpecAugment from uniforms: equality with a slow loop, independence of the batch, and bounds of the masks."""

import math

import numpy as np
import pytest
import torch

from sepscene.augment.augmentations.built_in import SpecAugmentation
from sepscene.augment.augmentations.settings import SpecAugment

FRAMES = 96
BANDS = 64
PLAIN = SpecAugmentation(SpecAugment())


def _slow(patch: np.ndarray, u: np.ndarray, settings: SpecAugment) -> np.ndarray:
    """One patch, cell by cell, in float64."""
    frames, bands = patch.shape
    w = settings.warp_frames
    last = frames - 1
    out = patch.copy()
    if w:
        centre = w + 1 + u[8] * (frames - 2 * w - 3)
        target = centre + (2 * u[9] - 1) * w
        for t in range(frames):
            source = t * centre / target if t < target else last - (last - t) * (last - centre) / (last - target)
            low = min(math.floor(source), last - 1)
            out[t] = patch[low] + (source - low) * (patch[low + 1] - patch[low])
    for k, (widest, length) in enumerate(
        [(settings.time_mask_frames, frames)] * 2 + [(settings.frequency_mask_bands, bands)] * 2
    ):
        width = math.floor(u[2 * k] * (widest + 1))
        start = math.floor(u[2 * k + 1] * (length - width + 1))
        if k < 2:
            out[start : start + width] = patch.mean()
        else:
            out[:, start : start + width] = patch.mean()
    return out


def test_equals_the_slow_loop() -> None:
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((40, FRAMES, BANDS))
    uniforms = rng.random((40, 10))
    fast = PLAIN(torch.from_numpy(patches), torch.from_numpy(uniforms), None).numpy()
    slow = np.stack([_slow(p, u, SpecAugment()) for p, u in zip(patches, uniforms, strict=True)])
    np.testing.assert_allclose(fast, slow, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 33, 255])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_row_is_the_same_in_any_batch(rows: int, device: str) -> None:
    patches = torch.randn(300, FRAMES, BANDS, device=device)
    uniforms = torch.rand(300, 10, device=device)
    whole = PLAIN(patches, uniforms, None)
    for start in range(0, 300 - rows + 1, max(rows, 22)):
        some = slice(start, start + rows)
        assert torch.equal(PLAIN(patches[some], uniforms[some], None), whole[some])


def test_masks_reach_but_never_exceed_their_bounds() -> None:
    settings = SpecAugment(warp_frames=0)
    uniforms = torch.rand(4000, 10)
    ones = torch.arange(FRAMES * BANDS, dtype=torch.float64).reshape(1, FRAMES, BANDS).expand(4000, -1, -1)
    changed = SpecAugmentation(settings)(ones, uniforms.double(), None) != ones
    frames_hidden = changed.all(dim=2).sum(dim=1)
    bands_hidden = changed.all(dim=1).sum(dim=1)
    assert frames_hidden.max() == 32 and bands_hidden.max() == 16
    assert frames_hidden.min() == 0 and bands_hidden.min() == 0


def test_nothing_to_do_changes_nothing() -> None:
    patch = torch.randn(2, FRAMES, BANDS)
    none = SpecAugment(time_mask_frames=0, frequency_mask_bands=0, warp_frames=0)
    assert torch.equal(SpecAugmentation(none)(patch, torch.rand(2, 10), None), patch)
    assert PLAIN(patch[:0], torch.rand(0, 10), None).shape == (0, FRAMES, BANDS)
