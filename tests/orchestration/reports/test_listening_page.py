"""The sounds of the listening page, their levels, and the closest source of each channel."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from sepscene.orchestration.records.results import ProcessorResult
from sepscene.orchestration.reports import listening_page as listen
from sepscene.orchestration.reports.listening_page import Neighbour, PageScene, Query, write_listening_page

RATE = 8000
LADDER = (ProcessorResult(name="S2", step=600, digest="b"), ProcessorResult(name="N", step=0, digest="a"))


def tone(hertz: float, seconds: float = 0.5, level: float = 0.2) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def scene(name: str = "scene-0", seconds: float = 0.5) -> PageScene:
    """Two tones, which S2 separates with a little leakage, and N does not separate."""
    sources_KT = np.stack([tone(440, seconds), tone(1500, seconds)])
    mixture_T = sources_KT.sum(0)
    separated = np.stack([sources_KT[1] + 0.1 * sources_KT[0], sources_KT[0] + 0.1 * sources_KT[1]])
    return PageScene(
        name=name,
        mixture_T=mixture_T,
        separated_ST={"N": np.stack([mixture_T, mixture_T]) / 2, "S2": separated},
        labels=("low", "high"),
        sources_KT=sources_KT,
        source_labels=("low", "high"),
    )


def query() -> Query:
    """A query with one neighbour of its class and one of another."""
    near = Neighbour("clip-1", tone(450), ("low",), 0.031, True)
    far = Neighbour("clip-2", tone(1500), ("high",), 0.4, False)
    return Query("clip-0", tone(440), ("low",), (near, far), "low")


def sounds(path: Path, part: str | None = None) -> list[tuple[str, np.ndarray]]:
    """Label and wave of every audio element of a page, or of a part of its text."""
    found = re.findall(r'src="(listen/[^"]+)" aria-label="([^"]+)"', path.read_text() if part is None else part)
    return [(label, soundfile.read(path.parent / name)[0]) for name, label in found]


def test_all_channels_of_a_scene_have_the_same_gain(tmp_path: Path) -> None:
    one = scene()
    page = write_listening_page(tmp_path, [one], LADDER, RATE)
    played = dict(sounds(page))
    assert list(played) == [
        "Mixture", "True source: low", "True source: high",
        "N, channel 1", "N, channel 2", "S2, channel 1", "S2, channel 2",
    ]  # fmt: skip
    gain = listen.PEAK / np.abs(one.mixture_T).max()
    for label, expected_T in (("Mixture", one.mixture_T), ("S2, channel 2", one.separated_ST["S2"][1])):
        np.testing.assert_allclose(played[label], expected_T * gain, atol=2 / 32768)


def test_channels_name_the_source_they_are_closest_to(tmp_path: Path) -> None:
    page = write_listening_page(tmp_path, [scene()], LADDER, RATE).read_text()
    notes = re.findall(r'class="note">([^<]+)<', page)
    assert notes[2:] == ["closest to high, SI-SDR 20.0 dB", "closest to low, SI-SDR 20.0 dB"]
    assert re.findall(r"SI-SDR improvement ([−\d.]+) dB", page) == ["0.0", "20.0"]


def test_pictures_are_on_the_mixtures_scale_with_low_bands_at_the_bottom(tmp_path: Path) -> None:
    quiet = PageScene("q", tone(300), {"S2": np.stack([tone(300, level=0.002), tone(300)])})
    page = write_listening_page(tmp_path, [quiet], LADDER[:1], RATE).read_text()
    found = re.findall(r'data:image/png;base64,([^"]+)', page)
    mixture, faint, same = (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found)
    np.testing.assert_array_equal(mixture, same)
    assert mixture.argmax(axis=0).min() > 40, "a 300 Hz tone must be in the lower third"
    step = 255 / listen.PICTURE_RANGE_DB
    assert mixture.max() - float(faint.max()) == pytest.approx(40 * step, abs=1.5)


def test_notes_on_channels_that_would_clip_are_silent_or_not_finite(tmp_path: Path) -> None:
    loud = tone(440) * 10
    broken = tone(440)
    broken[5] = np.nan
    odd = PageScene("odd", tone(440), {"S2": np.stack([loud, np.zeros_like(loud), broken])})
    page = write_listening_page(tmp_path, [odd], LADDER[:1], RATE)
    assert re.findall(r'class="note">([^<]+)<', page.read_text()) == [
        "played 20 dB quieter, to avoid clipping",
        "silent",
        "non-finite samples, played as silence: 1",
    ]
    assert np.abs(dict(sounds(page))["S2, channel 1"]).max() == pytest.approx(listen.PEAK, abs=1e-3)


def test_neighbours_are_in_order_with_distance_and_relevance(tmp_path: Path) -> None:
    page = write_listening_page(tmp_path, [], (), RATE, [query()])
    assert [label for label, _ in sounds(page)] == ["Query for low", "1. clip-1", "2. clip-2"]
    assert re.findall(r'class="note">([^<]+)<', page.read_text()) == [
        "distance 0.031 · low · ✓ low",
        "distance 0.400 · high · ✗ not low",
    ]


def test_many_large_scenes_and_queries_are_complete(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * RATE).astype(np.float32)
    scenes = [PageScene(f"s{k}", noise, {"S2": np.stack([noise] * 30)}) for k in range(4)]
    path = write_listening_page(tmp_path, scenes, LADDER[:1], RATE, [query()])
    kept = [*path.parent.glob("listen/*.flac")]
    assert sum(sound.stat().st_size for sound in kept) > 8_000_000
    assert len(kept) == len(sounds(path)) == 4 * 31 + 3
    assert path.read_text().count("<article") == 5


def test_long_clips_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MAX_SECONDS", 0.25)
    page = write_listening_page(tmp_path, [scene()], LADDER, RATE)
    assert {len(wave_T) for _, wave_T in sounds(page)} == {RATE // 4}


def test_all_players_of_a_long_scene_have_its_loudest_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MAX_SECONDS", 0.25)
    wave_T = np.concatenate([tone(440, 0.4, 0.01), tone(440, 0.25, 0.4), tone(440, 0.4, 0.01)])
    page = write_listening_page(tmp_path, [PageScene("s", wave_T, {"N": np.stack([wave_T / 2])})], LADDER[1:], RATE)
    played = dict(sounds(page))
    np.testing.assert_allclose(played["N, channel 1"], played["Mixture"] / 2, atol=2 / 32768)
    expected_T = tone(440, 0.25, 0.4)
    correlation = played["Mixture"] @ expected_T / np.linalg.norm(played["Mixture"]) / np.linalg.norm(expected_T)
    assert correlation == pytest.approx(1, abs=0.02)


def test_page_is_self_contained_and_allows_only_its_script(tmp_path: Path) -> None:
    page = write_listening_page(tmp_path, [scene("<b>odd</b>")], LADDER, RATE, [query()]).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#|report\.html|listen/\d+\.flac)""", page)
    assert "script-src 'sha256-" in page
    assert "<b>odd" not in page


def test_the_page_of_a_run_links_to_the_report_that_is_written_later(tmp_path: Path) -> None:
    for has_report in (False, True):
        page = write_listening_page(tmp_path, [scene()], LADDER, RATE, has_report=has_report).read_text()
        assert ('href="report.html"' in page) == has_report


def test_sources_with_the_same_label_have_unique_names(tmp_path: Path) -> None:
    channels = np.stack([tone(440)] * 2)
    sources = np.stack([tone(440)] * 3)
    twice = PageScene("s", tone(440), {"S2": channels}, (), sources, ("dog", "cat", "dog"))
    page = write_listening_page(tmp_path, [twice], LADDER[:1], RATE)
    assert [label for label, _ in sounds(page)][1:4] == ["True source: dog 1", "True source: cat", "True source: dog 2"]
