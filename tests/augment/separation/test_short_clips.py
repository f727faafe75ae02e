"""Clips shorter than `clip_seconds`: views are cropped from their sound, not from the padding."""

from pathlib import Path

import numpy as np
import soundfile

from sepscene.augment.audio import AudioFormat
from sepscene.augment.draws import Schedule, draw
from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.augment.separation.reader import ViewMaker, read_segments
from sepscene.augment.views import Views, view_starts

ROWS = 40
AUDIO = AudioFormat(clip_seconds=10.0)
VIEWS = Views(pair="mix-mix")


def rows(tmp_path: Path, seconds: float) -> dict[str, np.ndarray]:
    path = tmp_path / f"{seconds}.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(0.1, 0.3, round(16_000 * seconds)), 16_000)
    columns = draw(Schedule(seed=0, clips=ROWS, epochs=1), np.arange(ROWS), (1.0,))
    return columns | {"uri": np.array([str(path)] * ROWS, object), "offset_seconds": np.zeros(ROWS)}


def views(columns: dict[str, np.ndarray], audio: AudioFormat = AUDIO) -> np.ndarray:
    made = ViewMaker(ServiceSettings(views=VIEWS, audio=audio, checkpoints={}))(columns)
    assert not made["fault"].any()
    return np.stack([made["view_1"], made["view_2"]], axis=1)


def test_no_view_contains_padding(tmp_path: Path) -> None:
    for seconds in (1.0, 4.0, 5.0):
        assert (views(rows(tmp_path, seconds)) > 0).all(), "the sound has no zeros, the padding only zeros"


def test_a_clip_shorter_than_a_view_is_padded_at_its_end(tmp_path: Path) -> None:
    view_N2P = views(rows(tmp_path, 0.5))
    assert (view_N2P[..., :8_000] > 0).all() and not view_N2P[..., 8_000:].any()


def test_padding_by_repetition_is_sound(tmp_path: Path) -> None:
    assert (views(rows(tmp_path, 1.0), AudioFormat(pad="repeat")) > 0).all()


def test_full_length_clips_keep_their_views(tmp_path: Path) -> None:
    columns = rows(tmp_path, 10.0)
    wave = np.rint(soundfile.read(columns["uri"][0], dtype="float32")[0] * 32767).astype(np.int16)
    starts = np.stack(view_starts(columns, VIEWS, AUDIO.samples, 16_000), axis=1)
    expected = np.stack([[wave[start : start + 15_360] for start in pair] for pair in starts])
    np.testing.assert_array_equal(views(columns), expected)


def test_segments_for_a_separator_come_from_the_sound(tmp_path: Path) -> None:
    assert (read_segments(rows(tmp_path, 4.0), AUDIO, 2.0)["segment"] > 0).all()
