"""The listening page: what every processor makes of held-out clips, and which clips the encoder finds alike.

The page holds its pictures, small PNGs; the sounds lie in a folder beside it and are loaded when they are played. They
are 16-bit FLAC (lossless: what is heard is what the separator gave; Chromium, Firefox and Safari play it). All channels
of a scene are played at one gain and drawn on the mixture's scale, so that a quiet channel sounds and looks quiet.

Shapes: T samples, S channels, K sources, F mels, L frames.
"""

import base64
import io
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import torch
from PIL import Image
from torchaudio.transforms import MelSpectrogram

from sepscene.orchestration.records.results import ProcessorResult
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.reports.render import number, render
from sepscene.tasks.losses.mixit import si_sdr, si_sdr_improvement

MOST_SECONDS = 5.0
PEAK = 0.9
SILENT_DB = -60.0
PICTURE_RANGE_DB = 70.0
PICTURE_FRAMES = 400


@dataclass(frozen=True)
class Scene:
    """A held-out clip and what each processor made of it.

    Attributes:
        mixture_T: the clip, float32 like all waves of the page.
        separated_ST: processor name -> its channels.
        sources_KT: the true sources where they are known, named by `source_labels`.
    """

    name: str
    mixture_T: np.ndarray
    separated_ST: Mapping[str, np.ndarray]
    labels: tuple[str, ...] = ()
    sources_KT: np.ndarray | None = None
    source_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neighbour:
    """A clip near a query: its cosine distance, and whether the wanted class is heard in it."""

    name: str
    wave_T: np.ndarray
    labels: tuple[str, ...]
    distance: float
    relevant: bool


@dataclass(frozen=True)
class Query:
    """A clip that was looked up by example, the class it stands for, and its nearest neighbours, nearest first."""

    name: str
    wave_T: np.ndarray
    labels: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]
    wanted: str


@dataclass(frozen=True)
class Player:
    """One sound of the page, ready to be shown: a file beside the page, a picture as data URI, its level and length."""

    title: str
    audio: str
    picture: str
    level_db: float
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Players side by side under one heading: the channels of a processor, or the neighbours of a query."""

    title: str
    players: tuple[Player, ...]
    note: str = ""


@dataclass(frozen=True)
class Block:
    """One scene or query of the page."""

    title: str
    labels: tuple[str, ...]
    rows: tuple[Row, ...]


def write_listening_page(
    run_dir: Path,
    scenes: Iterable[Scene],
    ladder: Sequence[ProcessorResult],
    sample_rate: int,
    queries: Iterable[Query] = (),
) -> Path:
    """Write RUN/listen.html and its sounds in RUN/listen; of a long sound the loudest `MOST_SECONDS` are heard.

    Args:
        scenes: held-out clips, separated by every processor of `ladder`.
        sample_rate: of every wave, in Hz.
    """
    files = RunFolder(run_dir)
    shutil.rmtree(files.sounds, ignore_errors=True)
    files.sounds.mkdir(parents=True)
    drawer = _Drawer(sample_rate, files.sounds)
    return render(
        "listen.html.j2",
        files.listening_page,
        script="listen.js",
        title=run_dir.name,
        scenes=[drawer.scene(scene, ladder) for scene in scenes],
        queries=[drawer.query(query) for query in queries],
        seconds=f"{MOST_SECONDS:g}",
        has_report=files.report_html.exists() or files.results.exists(),
    )


class _Drawer:
    """Turns waves of one sample rate into players."""

    def __init__(self, sample_rate: int, sounds: Path) -> None:
        self.sample_rate = sample_rate
        self.sounds = sounds
        self.written = 0
        self.samples = round(MOST_SECONDS * sample_rate)

    def scene(self, scene: Scene, ladder: Sequence[ProcessorResult]) -> Block:
        heard = self.loudest(scene.mixture_T)
        mixture_T = scene.mixture_T[heard]
        sources_KT = np.empty((0, 0), np.float32) if scene.sources_KT is None else scene.sources_KT[:, heard]
        names = _source_names(scene.source_labels or ("source",) * len(sources_KT))
        first = [self.player("Mixture", mixture_T, mixture_T)]
        for name, source_T in zip(names, sources_KT, strict=True):
            first.append(self.player(f"True source: {name}", source_T, mixture_T))
        rows = [Row("", tuple(first))]
        for processor in sorted(ladder, key=lambda processor: processor.step):
            separated_ST = scene.separated_ST[processor.name][:, heard]
            notes, overall = _scored(mixture_T, separated_ST, sources_KT, names)
            players = [
                self.player(f"{processor.name}, channel {index + 1}", wave_T, mixture_T, note)
                for index, (wave_T, note) in enumerate(zip(separated_ST, notes, strict=True))
            ]
            steps = f"{processor.name}, {processor.step:,} training steps"
            rows.append(Row(steps, tuple(players), overall))
        return Block(scene.name, scene.labels, tuple(rows))

    def query(self, query: Query) -> Block:
        players = []
        for rank, near in enumerate(query.neighbours, start=1):
            wave_T = near.wave_T[self.loudest(near.wave_T)]
            verdict = f"✓ {query.wanted}" if near.relevant else f"✗ no {query.wanted}"
            notes = (f"distance {number(near.distance)}", ", ".join(near.labels), verdict)
            players.append(self.player(f"{rank}. {near.name}", wave_T, wave_T, notes))
        wave_T = query.wave_T[self.loudest(query.wave_T)]
        first = Row("", (self.player(f"Query for {query.wanted}", wave_T, wave_T),))
        return Block(query.name, query.labels, (first, Row("Nearest clips, nearest first", tuple(players))))

    def loudest(self, wave_T: np.ndarray) -> slice:
        """Where a long sound has the most energy for as long as a player lasts."""
        if len(wave_T) <= self.samples:
            return slice(0, len(wave_T))
        energy_T = np.concatenate([[0.0], np.cumsum(np.square(np.nan_to_num(wave_T), dtype=np.float64))])
        start = int(np.argmax(energy_T[self.samples :] - energy_T[: -self.samples]))
        return slice(start, start + self.samples)

    def player(self, title: str, wave_T: np.ndarray, scale_T: np.ndarray, notes: tuple[str, ...] = ()) -> Player:
        """A sound at the level of `scale_T`: quieter only where it would clip, which is then said."""
        finite_T = np.nan_to_num(wave_T, nan=0.0, posinf=0.0, neginf=0.0)
        gain = PEAK / max(float(np.abs(scale_T).max(initial=0.0)), 1e-4)
        own_gain = min(gain, PEAK / max(float(np.abs(finite_T).max(initial=0.0)), 1e-4))
        if own_gain < 0.99 * gain:
            notes += (f"played {20 * np.log10(gain / own_gain):.0f} dB quieter, it would clip",)
        if not np.isfinite(wave_T).all():
            notes += (f"{int((~np.isfinite(wave_T)).sum())} samples are not finite, played as silence",)
        level_db = decibel_full_scale(finite_T)
        if level_db < SILENT_DB:
            notes += ("silent",)
        path = self.sounds / f"{self.written:03d}.flac"
        self.written += 1
        soundfile.write(path, finite_T * own_gain, self.sample_rate, subtype="PCM_16")
        return Player(
            title=title,
            audio=f"{self.sounds.name}/{path.name}",
            picture=self._mel(finite_T, scale_T),
            level_db=level_db,
            seconds=len(finite_T) / self.sample_rate,
            notes=notes,
        )

    def _mel(self, wave_T: np.ndarray, scale_T: np.ndarray) -> str:
        """A log-mel picture as PNG, low bands at the bottom, on the scale of another wave."""
        top = self._mel_db(np.nan_to_num(scale_T)).max()
        shade_FL = np.clip((self._mel_db(wave_T) - top) / PICTURE_RANGE_DB + 1, 0, 1)
        image = Image.fromarray((shade_FL[::-1] * 255).astype(np.uint8)).convert("P")
        colours = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
        image.putpalette(colours.tobytes())
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    def _mel_db(self, wave_T: np.ndarray) -> np.ndarray:
        window = 1 << round(np.log2(0.064 * self.sample_rate))
        hop = max(window // 4, -(-len(wave_T) // PICTURE_FRAMES))
        mel = _mel_bands(self.sample_rate, window, hop)
        padded = torch.from_numpy(np.pad(wave_T.astype(np.float32), (0, max(0, window - len(wave_T)))))
        return 10 * torch.log10(mel(padded) + 1e-10).numpy()


@lru_cache
def _mel_bands(sample_rate: int, window_samples: int, hop_samples: int) -> MelSpectrogram:
    return MelSpectrogram(sample_rate, n_fft=window_samples, hop_length=hop_samples, f_min=50.0, n_mels=64)


def _scored(
    mixture_T: np.ndarray, separated_ST: np.ndarray, sources_KT: np.ndarray, names: tuple[str, ...]
) -> tuple[list[tuple[str, ...]], str]:
    """For each channel the source it is closest to, with its SI-SDR; for all of them the mean improvement."""
    if not len(sources_KT) or not np.isfinite(separated_ST).all():
        return [()] * len(separated_ST), ""
    separated = torch.from_numpy(separated_ST)
    sources = torch.from_numpy(sources_KT)
    score_SK = si_sdr(separated[:, None], sources[None])
    notes: list[tuple[str, ...]] = []
    for score_K in score_SK:
        closest = int(score_K.argmax())
        notes.append((f"closest to {names[closest]}, SI-SDR {number(float(score_K[closest]), 1)} dB",))
    mixture = torch.from_numpy(mixture_T)[None]
    gain = float(si_sdr_improvement(mixture, sources[None], separated[None])[0])
    return notes, f"SI-SDR improvement {number(gain, 1)} dB"


def _source_names(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels, with a number behind each of those that are equal."""
    counts = Counter(labels)
    return tuple(f"{name} {labels[: k + 1].count(name)}" if counts[name] > 1 else name for k, name in enumerate(labels))


def decibel_full_scale(wave_T: np.ndarray) -> float:
    """RMS level in dB relative to 1.0; −120 for silence."""
    rms = np.sqrt(np.mean(np.square(wave_T, dtype=np.float64))) if len(wave_T) else 0.0
    return float(20 * np.log10(max(rms, 1e-6)))
