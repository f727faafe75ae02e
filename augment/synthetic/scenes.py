"""Synthetic sound scenes in which event classes co-occur by scene type, as in real recordings.

A scene type (street, kitchen, …) has a vocabulary of event classes. A scene draws a few of them, each a new instance
with its own pitch, timing, timbre, level and reverberation, over a background of the scene type. So event classes
co-occur by scene type, not independently. This is the paper's hypothesis for why a mixture and its parts are a positive
pair. The isolated sources are kept, so that separation can be evaluated.

Shape suffixes: S sources (the events, then the background), T samples.
"""

import csv
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from pydantic import Field, model_validator

from sepscene.augment.synthetic import noisy_events, tonal_events
from sepscene.augment.synthetic.one_shots import EventMaker, one_shot_makers
from sepscene.augment.synthetic.sources import scenes_manifest, sources_path
from sepscene.augment.synthetic.synthesis import Synth, curve
from sepscene.models.config import Config, SepsceneError
from sepscene.models.files import write_atomically

BACKGROUND = "background"
"""Label of the last source of each scene; not an event class."""

SHORTEST_SECONDS = 0.5
LONGEST_SECONDS = 60.0
"""Limits of the length of a scene."""


@dataclass(frozen=True)
class SceneType:
    """A scene type, e.g. a street.

    Attributes:
        vocabulary: its event classes.
        echo_seconds: range of the reverberation time.
        slope: range of the background's spectral slope in dB per octave.
        hum: level of mains hum relative to the background noise; 0 for none.
        restlessness: variation of the background's level, 0 to 1.
    """

    vocabulary: tuple[str, ...]
    echo_seconds: tuple[float, float]
    slope: tuple[float, float]
    hum: float
    restlessness: float


PLACES: dict[str, SceneType] = {
    "street": SceneType(
        ("car_horn", "siren", "engine", "footsteps", "dog_bark", "speech"), (0.1, 0.4), (-6, -3), 0.3, 0.5
    ),
    "forest": SceneType(
        ("bird_song", "woodpecker", "cricket", "frog", "wind_gust", "footsteps"), (0.1, 0.6), (-4, 0), 0.0, 0.7
    ),
    "kitchen": SceneType(
        ("kettle", "dishes", "water_tap", "frying", "chopping", "speech"), (0.2, 0.6), (-6, -2), 0.5, 0.1
    ),
    "harbour": SceneType(("ship_horn", "gull", "waves", "bell", "wind_gust", "engine"), (0.2, 0.7), (-5, -1), 0.1, 0.8),
    "office": SceneType(
        ("keyboard", "printer", "knock", "beeps", "laughter", "speech"), (0.2, 0.5), (-7, -3), 0.4, 0.1
    ),
    "farm": SceneType(
        ("rooster", "dog_bark", "bird_song", "cricket", "hammer", "bell"), (0.1, 0.4), (-5, -1), 0.0, 0.6
    ),
    "workshop": SceneType(("drill", "hammer", "engine", "beeps", "laughter", "knock"), (0.4, 1.1), (-6, -2), 0.6, 0.3),
}
"""The scene types. Some event classes belong to two of them, so that one event does not determine the scene type."""

EVENTS: dict[str, EventMaker] = {
    name: getattr(tonal_events, name, None) or getattr(noisy_events, name)
    for place in PLACES.values()
    for name in place.vocabulary
}
"""Event class -> the function of this name, which generates an instance."""


class SceneConfig(Config):
    """How scenes are generated. All of it is ours: the paper uses AudioSet."""

    sample_rate: int = Field(16_000, ge=8_000, le=96_000, description="Hz")
    clip_seconds: float = Field(10.0, ge=SHORTEST_SECONDS, le=LONGEST_SECONDS)
    min_events: int = Field(2, ge=1, le=20)
    max_events: int = Field(5, ge=1, le=20)
    min_snr_db: float = Field(-3.0, description="level of an event while it is active, relative to the background")
    max_snr_db: float = Field(20.0)
    stray_share: float = Field(0.05, ge=0, le=1, description="probability that an event is drawn from all classes")
    recurring: bool = Field(False, description="every event is repeated throughout the clip; off: it occurs once")
    longest_gap_seconds: float = Field(1.0, ge=0, description="longest pause between repetitions of an event")
    gain_db: float = Field(0.0, ge=0, le=30, description="random gain of each clip, up to this many dB up or down")
    one_shots: str | None = Field(
        None,
        description="folder of labelled recordings that replace the synthetic events, FOLDER/LABEL/*.wav or as ESC-50; "
        "none: synthetic events",
    )

    @model_validator(mode="after")
    def _ranges_in_order(self) -> "SceneConfig":
        if self.min_events > self.max_events:
            raise ValueError("min_events is larger than max_events; swap them")
        if self.min_snr_db > self.max_snr_db:
            raise ValueError("min_snr_db is larger than max_snr_db; swap them")
        return self


PROFILES: dict[str, SceneConfig] = {
    "single": SceneConfig(),
    "recurring": SceneConfig(
        recurring=True, longest_gap_seconds=2.0, max_events=4, min_snr_db=6.0, max_snr_db=24.0, gain_db=10.0
    ),
}
"""Predefined scene configurations. In `single`, each event occurs once, so that two crops of a clip often share only
background and level, from which their common origin can be recognised. In `recurring`, they share events, the level is
random, and the background can be exchanged (`generate_scene(..., background=1)`)."""


def profile_of_length(clip_seconds: float, profile: str) -> SceneConfig:
    """A profile with scenes of the length of an experiment's clips, so that a clip contains all labelled events.

    Raises:
        SepsceneError: scenes cannot have this length.
    """
    if not SHORTEST_SECONDS <= clip_seconds <= LONGEST_SECONDS:
        lengths = f"{SHORTEST_SECONDS:g} to {LONGEST_SECONDS:g} s"
        raise SepsceneError(
            f"audio.clip_seconds is {clip_seconds:g}; generated scenes last {lengths}: set it within these limits"
        )
    return PROFILES[profile].changed({"clip_seconds": clip_seconds})


@dataclass(frozen=True)
class Scene:
    """One synthetic scene.

    Attributes:
        mixture_T: float32 in [-1, 1].
        sources_ST: float32; the events in order of onset, then the background. Their sum is exactly the mixture,
            because all values are multiples of 2^-15, for which float32 sums are exact.
        source_labels: event class of each source; the last one is `BACKGROUND`.
        labels: the distinct event classes in the scene, sorted.
        scene_type: a key of `PLACES`.
    """

    mixture_T: np.ndarray
    sources_ST: np.ndarray
    source_labels: tuple[str, ...]
    labels: tuple[str, ...]
    scene_type: str


def generate_scene(seed: int, index: int, config: SceneConfig | None = None, background: int = 0) -> Scene:
    """Generate a scene. The result depends only on the arguments.

    Args:
        seed: seed of the data set.
        index: number of the scene.
        config: how to generate it.
        background: 0 for the scene's own background. Any other number gives the same events at the same times and
            levels over another background, of any scene type, with another gain.
    """
    config = config or SceneConfig()
    synth = Synth([seed, index], config.sample_rate)
    view_synth = Synth([seed, index, 1 + background], config.sample_rate)
    samples = round(config.clip_seconds * config.sample_rate)
    events = event_makers(config)
    scene_type, names = draw_events(synth, config)
    kind = PLACES[scene_type]
    background_T = _background(synth, samples, kind)
    background_T *= np.float32(10 ** (synth.uniform(-46, -34) / 20))
    level = _rms(background_T)
    echo_seconds = synth.uniform(*kind.echo_seconds)
    sources = []
    onsets = []
    for name in names:
        event_T, onset = _event(synth, events[name], samples, echo_seconds, config)
        snr_db = synth.uniform(config.min_snr_db, config.max_snr_db)
        sources.append(event_T * np.float32(10 ** (snr_db / 20) * level / _active_rms(event_T)))
        onsets.append(onset)
    if background:
        elsewhere = PLACES[str(view_synth.choice(sorted(PLACES)))]
        background_T = _background(view_synth, samples, elsewhere)
        background_T *= np.float32(10 ** (view_synth.uniform(-6, 6) / 20)) * level
    order = np.argsort(onsets, kind="stable")
    sources_ST = np.stack([*(sources[k] for k in order), background_T])
    if config.gain_db:
        sources_ST *= np.float32(10 ** (view_synth.uniform(-config.gain_db, config.gain_db) / 20))
    sources_ST = _on_grid(sources_ST)
    return Scene(
        mixture_T=sources_ST.sum(axis=0),
        sources_ST=sources_ST,
        source_labels=(*(names[k] for k in order), BACKGROUND),
        labels=tuple(sorted(set(names))),
        scene_type=scene_type,
    )


def event_makers(config: SceneConfig) -> Mapping[str, EventMaker]:
    """Event class -> function that generates an instance, for a configuration."""
    return EVENTS if config.one_shots is None else one_shot_makers(config.one_shots)


def vocabulary(scene_type: str, config: SceneConfig) -> tuple[str, ...]:
    """The event classes of a scene type. Each class of recorded events is assigned to two scene types."""
    if config.one_shots is None:
        return PLACES[scene_type].vocabulary
    position = sorted(PLACES).index(scene_type)
    count = len(PLACES)
    classes = sorted(event_makers(config))
    own = tuple(name for k, name in enumerate(classes) if position in (k % count, (2 * k + 3) % count))
    return own or (classes[position % len(classes)],)


def draw_events(rng: np.random.Generator, config: SceneConfig) -> tuple[str, list[str]]:
    """Draw a scene type, uniformly from `PLACES`, and the classes of its events. This determines co-occurrence."""
    scene_type = str(rng.choice(sorted(PLACES)))
    names = []
    for _ in range(int(rng.integers(config.min_events, config.max_events + 1))):
        stray = rng.random() < config.stray_share
        names.append(str(rng.choice(sorted(event_makers(config)) if stray else vocabulary(scene_type, config))))
    return scene_type, names


def write_scenes(
    directory: str | os.PathLike[str],
    count: int,
    seed: int,
    split: str,
    config: SceneConfig | None = None,
    with_sources: bool | None = None,
    backgrounds: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write `count` scenes as 16-bit WAV to DIRECTORY/SPLIT, and the manifest DIRECTORY/SPLIT.csv.

    The manifest has the columns uri, labels, split, offset_seconds, scene_type and source_labels. A scene depends only
    on (seed, split, number): a larger `count` adds scenes without changing existing ones, and splits share no scenes.
    The manifest is written last, so that after an interruption it never lists missing files.

    Args:
        directory: created if it does not exist.
        count: number of scenes in this split.
        seed: seed of the whole data set.
        split: name of the split and its folder, e.g. "train".
        config: how to generate the scenes.
        with_sources: also write the sources of each scene to a multi-channel file (`sources.read_sources`); the default
            is true for the split "test" only.
        backgrounds: number of versions of each scene: scene-N.wav has its own background; scene-N.background-1.wav and
            so on have other backgrounds, and are not in the manifest.
        progress: called after each scene with the number of finished scenes.

    Returns:
        Path of the manifest.
    """
    config = config or SceneConfig()
    with_sources = split == "test" if with_sources is None else with_sources
    folder = Path(directory) / split
    folder.mkdir(parents=True, exist_ok=True)
    split_seed = int.from_bytes(hashlib.sha256(f"{seed}/{split}".encode()).digest()[:8], "big")
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["uri", "labels", "split", "offset_seconds", "scene_type", "source_labels"])

    write_one = partial(_write_scene, folder, split_seed, config, with_sources, backgrounds)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # numpy and scipy release the GIL
        for done, row in enumerate(threads.map(write_one, range(count)), start=1):
            rows.writerow(row)
            if progress is not None:
                progress(done)
    manifest = scenes_manifest(directory, split)
    write_atomically(manifest, table.getvalue().encode())
    return manifest


def _write_scene(
    folder: Path, split_seed: int, config: SceneConfig, with_sources: bool, backgrounds: int, index: int
) -> list[object]:
    """Write one scene with its sources and backgrounds; return its row of the manifest."""
    scene = generate_scene(split_seed, index, config)
    path = folder / f"scene-{index:06d}.wav"
    _write_wav(path, scene.mixture_T, config.sample_rate)
    if with_sources:
        _write_wav(sources_path(path), scene.sources_ST.T, config.sample_rate)
    for number in range(1, backgrounds):
        other = generate_scene(split_seed, index, config, number)
        _write_wav(background_path(path, number), other.mixture_T, config.sample_rate)
    labels = ";".join(scene.labels)
    return [f"{folder.name}/{path.name}", labels, folder.name, 0.0, scene.scene_type, ";".join(scene.source_labels)]


def background_path(mixture_path: str | os.PathLike[str], number: int) -> Path:
    """Path of a scene with another background; number 0 is the scene itself."""
    path = Path(mixture_path)
    return path.with_suffix(f".background-{number}.wav") if number else path


def _event(
    synth: Synth, make: EventMaker, samples: int, echo_seconds: float, config: SceneConfig
) -> tuple[np.ndarray, int]:
    """A new instance of an event class with reverberation, once or recurring, and its onset in samples."""
    dry_T = synth.colour(np.trim_zeros(make(synth), "b")[:samples])
    if config.recurring:
        dry_T = _recurring(synth, dry_T, samples, config)
    event_T = synth.reverberate(dry_T, echo_seconds * synth.uniform(0.8, 1.2), synth.uniform(0.1, 0.9))
    onset = int(synth.integers(0, max(1, samples - len(dry_T)) + 1))
    return synth.place(samples, [onset / synth.rate], [event_T]), onset


def _recurring(synth: Synth, dry_T: np.ndarray, samples: int, config: SceneConfig) -> np.ndarray:
    """The event repeated over the whole clip (T,), up to 3 dB louder or softer; the first one can be cut off."""
    wave_T = np.zeros(samples, np.float32)
    start = -int(synth.integers(0, len(dry_T)))
    while start < samples:
        first = max(0, start)
        last = min(samples, start + len(dry_T))
        wave_T[first:last] += np.float32(10 ** (synth.uniform(-3, 3) / 20)) * dry_T[first - start : last - start]
        start += len(dry_T) + round(synth.uniform(0, config.longest_gap_seconds) * synth.rate)
    return wave_T


def _background(synth: Synth, samples: int, kind: SceneType) -> np.ndarray:
    """The background of a scene type (T,): noise of two colours in drifting shares, and mains hum."""
    dark_T = synth.coloured(samples, synth.uniform(*kind.slope) - 2)
    light_T = synth.coloured(samples, synth.uniform(*kind.slope) + 2)
    points = max(2, round(samples / synth.rate * 0.8))
    share_T = curve(samples, synth.uniform(0.5 - 0.5 * kind.restlessness, 0.5 + 0.5 * kind.restlessness, points))
    wave_T = (1 - share_T) * dark_T + share_T * light_T
    wave_T *= curve(samples, synth.uniform(1 - 0.7 * kind.restlessness, 1, points))
    if kind.hum:
        mains = synth.choice([50.0, 60.0]) * synth.uniform(0.99, 1.01)
        pitch_T = np.full(samples, mains, np.float32)
        hum_T = synth.tone(pitch_T, synth.overtones(mains, synth.uniform(-12, -6), spread=6))
        wave_T += np.float32(kind.hum * synth.uniform(0, 1)) * hum_T
    return wave_T / _rms(wave_T)


def _on_grid(sources_ST: np.ndarray) -> np.ndarray:
    """Round the sources to multiples of 2^-15, after scaling them down if they or their sum would exceed [-1, 1]."""
    peak = max(float(np.abs(sources_ST.sum(axis=0)).max()), float(np.abs(sources_ST).max()))
    gain = min(1.0, 0.9 / peak)
    return (np.rint(sources_ST * np.float32(gain * 2**15)) / np.float32(2**15)).astype(np.float32)


def _rms(wave_T: np.ndarray) -> np.float32:
    return np.float32(np.sqrt(np.mean(np.square(wave_T))))


def _active_rms(wave_T: np.ndarray) -> float:
    """RMS over the samples less than 40 dB below the peak, which excludes the gaps between strokes."""
    power_T = np.square(wave_T)
    active_T = power_T > 1e-4 * power_T.max()
    return float(np.sqrt(power_T[active_T].mean()))


def _write_wav(path: Path, wave: np.ndarray, rate: int) -> None:
    soundfile.write(path, np.rint(wave * 2**15).astype(np.int16), rate, subtype="PCM_16")
