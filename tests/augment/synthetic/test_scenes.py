"""Synthetic scenes: exact sums, deterministic results, and events that co-occur by scene type."""

import csv
import hashlib
import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import soundfile

from sepscene.augment.audio import ClipError
from sepscene.augment.synthetic.scenes import (
    BACKGROUND,
    EVENTS,
    PLACES,
    Scene,
    SceneConfig,
    draw_events,
    generate_scene,
    write_scenes,
)
from sepscene.augment.synthetic.sources import read_sources
from sepscene.augment.synthetic.synthesis import Synth

RATE = 16_000
SHORT = SceneConfig(clip_seconds=2.0)


def checksum(scene: Scene) -> str:
    return hashlib.sha256(scene.sources_ST.tobytes() + repr(scene.source_labels).encode()).hexdigest()


class TestScene:
    @pytest.mark.parametrize("index", range(6))
    def test_sources_sum_to_the_mixture_exactly(self, index: int) -> None:
        scene = generate_scene(0, index)
        assert scene.mixture_T.shape == (160_000,) and scene.mixture_T.dtype == np.float32
        for order in (scene.sources_ST, scene.sources_ST[::-1]):
            total_T = np.zeros(160_000, np.float32)
            for source_T in order:
                total_T += source_T
            np.testing.assert_array_equal(total_T, scene.mixture_T)
        grid_ST = scene.sources_ST * 2**15
        np.testing.assert_array_equal(grid_ST, np.rint(grid_ST))
        assert np.abs(scene.sources_ST).max() <= 1 and 0.001 < np.abs(scene.mixture_T).max() <= 0.91
        assert all(source_T.any() for source_T in scene.sources_ST)

    def test_labels_are_those_of_the_sources(self) -> None:
        for index in range(12):
            scene = generate_scene(1, index, SHORT)
            assert len(scene.source_labels) == len(scene.sources_ST)
            assert scene.source_labels[-1] == BACKGROUND and BACKGROUND not in scene.labels
            assert scene.labels == tuple(sorted(set(scene.source_labels[:-1])))
            assert set(scene.labels) <= set(EVENTS) and scene.scene_type in PLACES
            onset_S = [int(np.flatnonzero(np.abs(s) > 1e-4)[0]) for s in scene.sources_ST[:-1]]
            assert np.all(np.diff(onset_S) > -1_600)  # in order, up to the attack time of each sound

    def test_order_of_generation_does_not_matter(self) -> None:
        forward = [checksum(generate_scene(3, index, SHORT)) for index in range(4)]
        backward = [checksum(generate_scene(3, index, SHORT)) for index in reversed(range(4))]
        assert forward == backward[::-1] and len(set(forward)) == 4
        assert checksum(generate_scene(4, 0, SHORT)) != forward[0]

    def test_level_of_events_is_the_drawn_one(self) -> None:
        config = SceneConfig(min_snr_db=12, max_snr_db=12, min_events=1, max_events=1)
        for index in range(4):
            event_T, background_T = generate_scene(5, index, config).sources_ST
            power_T = event_T.astype(np.float64) ** 2
            active = power_T[power_T > 1e-4 * power_T.max()].mean()
            assert 10 * np.log10(active / np.mean(background_T.astype(np.float64) ** 2)) == pytest.approx(12, abs=0.2)

    def test_faster_than_fifty_times_real_time(self) -> None:
        generate_scene(0, 0)
        begin = time.process_time()  # CPU time of this process, independent of other load
        for index in range(8):
            generate_scene(0, index)
        assert 80 / (time.process_time() - begin) > 50

    def test_other_rates(self) -> None:
        scene = generate_scene(0, 0, SceneConfig(sample_rate=8_000, clip_seconds=1.5))
        assert scene.mixture_T.shape == (12_000,)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"min_events": 4, "max_events": 3},
            {"min_snr_db": 5, "max_snr_db": 0},
            {"min_events": 0},
            {"noise": 1},
        ],
    )
    def test_bad_configuration(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError):
            SceneConfig(**wrong)


class TestCoOccurrence:
    def test_vocabularies(self) -> None:
        assert len(EVENTS) >= 24 and len(PLACES) >= 5
        homes = {name: {place for place, p in PLACES.items() if name in p.vocabulary} for name in EVENTS}
        assert all(homes.values()), "every class belongs to a scene type"
        assert sum(len(places) > 1 for places in homes.values()) >= 6, "one event must not determine the scene type"

    def test_classes_co_occur_by_place_and_not_independently(self) -> None:
        rng = np.random.default_rng(0)
        config = SceneConfig()
        count = 8_000
        column = {name: n for n, name in enumerate(EVENTS)}
        heard = np.zeros((count, len(EVENTS)))
        for row in range(count):
            heard[row, [column[name] for name in draw_events(rng, config)[1]]] = 1
        share = heard.mean(axis=0)
        lift = (heard.T @ heard / count) / np.outer(share, share)  # 1 where two classes are independent
        together = []
        apart = []
        for a, b in itertools.combinations(EVENTS, 2):
            neighbours = any({a, b} <= set(place.vocabulary) for place in PLACES.values())
            (together if neighbours else apart).append(lift[column[a], column[b]])
        assert np.median(together) > 2 and max(apart) < 0.5
        assert min(together) > max(apart), "classes of one scene type must co-occur more than others, for every pair"
        assert share.min() > 0.03, "every class must be common enough to be learnt"

    def test_a_stray_event_is_possible_but_rare(self) -> None:
        rng = np.random.default_rng(1)
        stray = 0
        total = 0
        for _ in range(3_000):
            scene_type, names = draw_events(rng, SceneConfig())
            stray += sum(name not in PLACES[scene_type].vocabulary for name in names)
            total += len(names)
        assert 0.02 < stray / total < 0.06


class TestVariety:
    @pytest.mark.parametrize("name", EVENTS)
    def test_instances_of_an_event_class_differ_in_their_spectra(self, name: str) -> None:
        waves = [EVENTS[name](Synth(seed, RATE)) for seed in range(4)]
        for wave_T in waves:
            assert wave_T.dtype == np.float32 and wave_T.ndim == 1
            assert np.isfinite(wave_T).all() and wave_T.any() and 0.1 < len(wave_T) / RATE < 9
        spectra = np.stack([band_levels(wave_T) for wave_T in waves])
        assert np.abs(np.diff(spectra, axis=0)).max(axis=1).min() > 2, "two instances differ by 2 dB in some band"

    @pytest.mark.slow
    def test_the_long_term_spectrum_does_not_determine_the_class(self) -> None:
        """Learnable but not trivial: nearest neighbours in the average spectrum are often of another class."""
        names = list(EVENTS)
        each = 8
        events = [EVENTS[name](Synth(seed, RATE)) for name in names for seed in range(each)]
        spectra = np.stack([band_levels(coloured_T) for coloured_T in _coloured(events)])
        spectra -= spectra.mean(axis=1, keepdims=True)
        truth = np.repeat(np.arange(len(names)), each)
        distance = np.linalg.norm(spectra[:, None] - spectra[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        accuracy = np.mean(truth[distance.argmin(axis=1)] == truth)
        assert 0.3 < accuracy < 0.75  # chance: 0.036


def _coloured(events: list[np.ndarray]) -> list[np.ndarray]:
    """The events with the random filters of scenes."""
    synth = Synth(0, RATE)
    return [synth.colour(event_T) for event_T in events]


def band_levels(wave_T: np.ndarray) -> np.ndarray:
    """Levels in dB in 20 third-octave bands from 100 Hz."""
    size = 2**17  # the longest event fits
    power = np.abs(scipy.fft.rfft(wave_T, size)) ** 2
    frequency = np.fft.rfftfreq(size, 1 / RATE)
    edges = 100 * 2 ** (np.arange(21) / 20 * 6.3)
    return np.array(
        [10 * np.log10(power[(frequency >= a) & (frequency < b)].sum() + 1e-9) for a, b in itertools.pairwise(edges)]
    )


class TestFiles:
    def test_manifest_mixtures_and_sources_are_written(self, tmp_path: Path) -> None:
        done: list[int] = []
        manifest = write_scenes(tmp_path, 3, 7, "test", SHORT, progress=done.append)
        assert done == [1, 2, 3] and manifest == tmp_path / "test.csv"
        with open(manifest, newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["uri"] for row in rows] == [f"test/scene-{n:06d}.wav" for n in range(3)]
        for row in rows:
            mixture_T, rate = soundfile.read(tmp_path / row["uri"], dtype="float32")
            assert rate == RATE and mixture_T.shape == (32_000,)
            sources_ST = read_sources(tmp_path / row["uri"])
            np.testing.assert_array_equal(sources_ST.sum(axis=0), mixture_T)
            names = row["source_labels"].split(";")
            assert len(names) == len(sources_ST) and row["labels"] == ";".join(sorted(set(names[:-1])))
            assert row["split"] == "test" and row["scene_type"] in PLACES

    def test_train_keeps_no_sources_by_default(self, tmp_path: Path) -> None:
        write_scenes(tmp_path, 1, 7, "train", SHORT)
        assert [path.name for path in (tmp_path / "train").iterdir()] == ["scene-000000.wav"]
        with pytest.raises(ClipError, match="with_sources"):
            read_sources(tmp_path / "train/scene-000000.wav")

    def test_splits_differ_and_grow_without_change(self, tmp_path: Path) -> None:
        for folder, count in (("a", 2), ("b", 3)):
            for split in ("train", "test"):
                write_scenes(tmp_path / folder, count, 7, split, SHORT)
        contents = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("scene-*[0-9].wav")}
        assert all(contents[path] == contents[Path("b", *path.parts[1:])] for path in contents if path.parts[0] == "a")
        assert len({data for path, data in contents.items() if path.parts[0] == "b"}) == 6


PROGRAM = """
import hashlib
from sepscene.augment.synthetic.scenes import generate_scene
for index in {order}:
    print(index, hashlib.sha256(generate_scene(11, index).sources_ST.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_generate_the_same_scenes() -> None:
    root = Path(__file__).resolve().parents[3]
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(order=order)],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for order in ([0, 1, 2, 9], [9, 2, 1, 0])
    ]
    assert sorted(runs[0]) == sorted(runs[1]) and len(runs[0]) == 4
