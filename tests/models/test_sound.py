"""Validation of sound: all supported types give the same sound, anything else an error."""

import numpy as np
import pytest
import torch

from sepscene.models.config import SepsceneError
from sepscene.models.separators.folder import load_separator, save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.models.sound import checked_sound

WAVE_BT = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 500))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "float16", "float32", "float64", ">f4", ">i2"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_one_clip_in_any_type_is_the_same_sound(kind, as_tensor):
    dtype = np.dtype(kind)
    bits = 8 * dtype.itemsize
    whole = np.round(WAVE_BT * 2.0 ** (bits - 1)) if dtype.kind in "iu" else WAVE_BT
    stored_BT = (whole + (128 if kind == "uint8" else 0)).astype(dtype)
    if as_tensor and dtype.isnative:
        stored_BT = torch.from_numpy(stored_BT)
    found_BT = checked_sound(stored_BT)
    assert found_BT.dtype == torch.float32
    step = 2.0**-7 if bits == 8 else 2.0**-10
    np.testing.assert_allclose(found_BT.numpy(), WAVE_BT, atol=step, rtol=0)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(500, np.float32), r"\(B, T\), clips by samples, not \(500,\)"),
        (np.zeros((48_000, 2), np.float32), "several channels, as soundfile returns it"),
        (np.zeros((1, 0), np.float32), "contains no samples"),
        (np.zeros((0, 500), np.float32), "contains no samples"),
        (np.full((1, 500), np.nan, np.float32), "NaN or infinite"),
        (torch.full((1, 500), -torch.inf), "NaN or infinite"),
        (np.full((1, 500), 20_000.0, np.float32), "reaches 20000: divide it by its full scale"),
        (np.zeros((1, 500), np.int64), "has no full scale"),
        (torch.zeros(1, 500, dtype=torch.bool), "has no full scale"),
        (np.zeros((1, 500), np.complex64), "not a ndarray of complex64"),
        ("clip.wav", "not a str"),
        ([[0.0] * 500, [0.0] * 400], r"sound must be an array or tensor \(B, T\): .*inhomogeneous"),
    ],
)
def test_anything_else_is_an_error(wave, message):
    with pytest.raises(SepsceneError, match=message):
        checked_sound(wave)


def test_a_loaded_separator_validates_its_input_and_builds_no_graph(tmp_path):
    save_separator(TDCNpp(TDCNppConfig.tiny()), tmp_path / "N", {})
    separator = load_separator(tmp_path / "N")
    pcm_BT = np.round(WAVE_BT * 2**15).astype(np.int16)
    separated_BST = separator(pcm_BT)
    assert not separated_BST.requires_grad
    assert torch.equal(separator(wave_BT=pcm_BT), separated_BST)
    torch.testing.assert_close(separated_BST.sum(1), torch.from_numpy(pcm_BT / 2.0**15).float(), atol=2e-6, rtol=0)
    with pytest.raises(SepsceneError, match="NaN or infinite"):
        separator(torch.full((1, 500), torch.nan))
