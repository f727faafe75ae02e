"""Recurring scenes without trivial cues: events recur, backgrounds and levels vary, events can be recorded."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepscene.augment.synthetic.scenes import (
    PLACES,
    PROFILES,
    SceneConfig,
    generate_scene,
    profile_of_length,
    vocabulary,
    write_scenes,
)
from sepscene.augment.synthetic.shared_events import (
    audible_events,
    describe_shared_events,
    shared_event_rate,
)
from sepscene.augment.views import Views
from sepscene.models.config import SepsceneError

RATE = 16_000
CROP = 15_360
RECURRING = PROFILES["recurring"]


def test_two_crops_anywhere_in_a_recurring_scene_share_an_event() -> None:
    scenes = [generate_scene(0, index, RECURRING).sources_ST for index in range(6)]
    once = [generate_scene(0, index).sources_ST for index in range(6)]
    assert shared_event_rate(scenes, CROP, 10 * RATE) >= 0.8
    assert shared_event_rate(once, CROP, 10 * RATE) < 0.6


def test_the_rate_of_shared_events_of_known_scenes() -> None:
    """A source throughout the clip is shared by all pairs; one in the first half, only by pairs in that half."""
    noise_T = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    half_T = np.where(np.arange(10_000) < 5_000, noise_T, 0)
    quiet_T = 0.01 * noise_T
    assert shared_event_rate([np.stack([noise_T, quiet_T])], 100, 10_000) == 1
    assert shared_event_rate([np.stack([0.01 * quiet_T, noise_T])], 100, 10_000) == 0
    found = shared_event_rate([np.stack([half_T, quiet_T])] * 20, 100, 10_000)
    assert found == pytest.approx(0.25, abs=0.05)
    words = describe_shared_events([np.stack([noise_T, quiet_T])] * 2, Views(patch_seconds=1.0), 100)
    assert words == "100% of positive pairs (-10 dB, 2 scenes)"
    heard_1N = audible_events(np.stack([half_T, quiet_T]), np.array([0, 4_950, 6_000]), 100)
    assert heard_1N.tolist() == [[True, True, False]]


def test_another_background_keeps_the_events_and_changes_the_rest() -> None:
    config = RECURRING.changed({"gain_db": 0.0})
    for index in range(3):
        own, other = (generate_scene(0, index, config, background) for background in (0, 1))
        assert own.source_labels == other.source_labels and own.scene_type == other.scene_type
        events = own.sources_ST[:-1].astype(np.float64)
        others = other.sources_ST[:-1].astype(np.float64)
        ratio = np.linalg.norm(others) / np.linalg.norm(events)  # the peak limits the whole scene
        np.testing.assert_allclose(others, events * ratio, atol=2e-4)
        correlation = np.corrcoef(own.sources_ST[-1], other.sources_ST[-1])[0, 1]
        assert abs(correlation) < 0.2


def test_the_gain_differs_between_clips() -> None:
    loud, plain = (RECURRING.changed({"gain_db": gain}) for gain in (10.0, 0.0))
    gains = []
    for index in range(6):
        one = generate_scene(2, index, loud).mixture_T
        two = generate_scene(2, index, plain).mixture_T
        gains.append(20 * np.log10(np.linalg.norm(one) / np.linalg.norm(two)))
    assert max(gains) - min(gains) > 3 and max(np.abs(gains)) < 10.1


def test_scenes_are_bit_identical_to_earlier_versions() -> None:
    known = hashlib.sha256()
    for index in range(2):
        known.update(generate_scene(7, index).sources_ST.tobytes())
    assert known.hexdigest()[:16] == "339aae4c5867a8a3"


def test_other_backgrounds_are_written_next_to_the_scene(tmp_path: Path) -> None:
    config = RECURRING.changed({"clip_seconds": 2.0})
    manifest = write_scenes(tmp_path, 1, 0, "train", config, backgrounds=2)
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert names == ["scene-000000.background-1.wav", "scene-000000.wav"]
    assert "background-1" not in manifest.read_text()


def test_recorded_events(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("bell", "crow", "drum"):
        (tmp_path / label).mkdir()
        wave_T = np.pad(0.3 * rng.standard_normal(4_000), (2_000, 2_000))
        soundfile.write(tmp_path / label / "one.wav", wave_T, 8_000)
    config = RECURRING.changed({"clip_seconds": 2.0, "one_shots": str(tmp_path)})
    scenes = [generate_scene(0, index, config) for index in range(24)]
    assert {label for scene in scenes for label in scene.labels} == {"bell", "crow", "drum"}
    assert all(
        set(vocabulary(place, config)) <= {"bell", "crow", "drum"} and vocabulary(place, config) for place in PLACES
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(SepsceneError, match="has no labelled recordings"):
        generate_scene(0, 0, config.changed({"one_shots": str(tmp_path / "empty")}))


def test_a_damaged_recorded_event_is_named(tmp_path: Path) -> None:
    (tmp_path / "bell").mkdir()
    (tmp_path / "bell" / "one.wav").write_bytes(b"not sound")
    with pytest.raises(SepsceneError, match=r"bell/one\.wav: not decodable"):
        generate_scene(0, 0, RECURRING.changed({"one_shots": str(tmp_path)}))


def test_a_table_of_recorded_events_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("filename,fold\none.wav,1\n")
    with pytest.raises(SepsceneError, match=r"esc50\.csv lacks the columns category"):
        generate_scene(0, 0, RECURRING.changed({"one_shots": str(tmp_path)}))


def test_recorded_events_are_bit_identical_to_earlier_versions(tmp_path: Path) -> None:
    """A recording with two channels, louder than full scale."""
    known = hashlib.sha256()
    (tmp_path / "bell").mkdir()
    wave_TC = np.sin(np.arange(8_000)[:, None] * np.array([0.2, 0.31]))
    soundfile.write(tmp_path / "bell" / "one.wav", 3 * wave_TC, 16_000, subtype="FLOAT")
    config = SceneConfig(clip_seconds=2.0, one_shots=str(tmp_path))
    for index in range(2):
        known.update(generate_scene(7, index, config).sources_ST.tobytes())
    assert known.hexdigest()[:16] == "347c421db3bf0658"


def test_scenes_are_as_long_as_an_experiments_clips() -> None:
    config = profile_of_length(3.0, "recurring")
    assert generate_scene(0, 0, config).mixture_T.shape == (48_000,)
    assert config == RECURRING.changed({"clip_seconds": 3.0})
    with pytest.raises(SepsceneError, match=r"audio.clip_seconds is 90; generated scenes last 0.5 to 60 s"):
        profile_of_length(90.0, "single")
