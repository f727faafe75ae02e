"""Scores of separators with known results: one that does nothing, and one that returns the true sources."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sepscene.augment.audio import AudioFormat
from sepscene.augment.draws import Schedule, crop_starts, draw
from sepscene.augment.separation.reader import read_source_segments
from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes
from sepscene.augment.synthetic.sources import read_sources
from sepscene.augment.views import from_pcm
from sepscene.tasks.evaluation.separation_scores import score_separation

AUDIO = AudioFormat(clip_seconds=2.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, float]]:
    """Four scenes with their sources."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 4, 0, "test", SceneConfig(clip_seconds=2.0))
    return [(str(path), 0.0) for path in sorted((root / "test").glob("scene-??????.wav"))]


def test_halving_the_mixture_improves_nothing(clips: list[tuple[str, float]]) -> None:
    scores = score_separation(lambda wave_BT: torch.stack([wave_BT, wave_BT], 1) / 2, clips, AUDIO, mixtures=8)
    assert len(scores.loss) == 2 and len(scores.source_improvement_db) == 2
    np.testing.assert_allclose(scores.source_improvement_db, 0, atol=1e-6)
    means = scores.means()
    assert means["held_out_mixtures"] == 2 and abs(means["held_out_source_improvement_db"]) < 1e-3


def test_the_sources_themselves_improve_much(clips: list[tuple[str, float]]) -> None:
    known = {float(read_sources(uri).sum()): torch.from_numpy(read_sources(uri)) for uri, _ in clips}

    def separate(wave_BT: Tensor) -> Tensor:
        sources = known.get(min(known, key=lambda total: abs(total - float(wave_BT.sum()))))
        assert sources is not None
        return torch.stack([sources[0], sources[1:].sum(0)])[None]

    assert score_separation(separate, clips, AUDIO, mixtures=1).source_improvement_db[0] > 10


def test_clips_without_sources_or_unreadable_are_left_out(clips: list[tuple[str, float]], tmp_path: Path) -> None:
    bad = [*clips[:2], (str(tmp_path / "missing.wav"), 0.0), clips[3]]
    assert len(score_separation(lambda wave_BT: wave_BT[:, None], bad, AUDIO, mixtures=8).loss) == 1
    Path(tmp_path / "alone.wav").write_bytes(Path(clips[0][0]).read_bytes())
    alone = [(str(tmp_path / "alone.wav"), 0.0), clips[1]]
    for sources in (None, b"not sound"):
        if sources is not None:
            Path(tmp_path / "alone.sources.wav").write_bytes(sources)
        scores = score_separation(lambda wave_BT: wave_BT[:, None], alone, AUDIO, mixtures=8)
        assert len(scores.loss) == 1 and not len(scores.source_improvement_db)
        assert "held_out_source_improvement_db" not in scores.means()


def test_source_segments_are_crops_of_the_sources(clips: list[tuple[str, float]], tmp_path: Path) -> None:
    columns = draw(Schedule(seed=0, clips=4, epochs=1), np.arange(4), (1.0,))
    uris = np.array([*(uri for uri, _ in clips[:3]), str(tmp_path / "missing.wav")], object)
    read = read_source_segments(columns | {"row": np.arange(4), "uri": uris}, AUDIO, segment_seconds=1.0)
    assert [bool(fault) for fault in read["fault"]] == [False, False, False, True]
    starts, _ = crop_starts(columns["crop_1_u"], columns["crop_2_u"], 32_000, 16_000, 0)
    for n in range(3):
        segment_KT = from_pcm(np.frombuffer(read["sources"][n], np.int16).reshape(-1, 16_000))
        expected_KT = read_sources(uris[n])[:, starts[n] : starts[n] + 16_000]
        np.testing.assert_allclose(segment_KT, expected_KT, atol=2**-15)
