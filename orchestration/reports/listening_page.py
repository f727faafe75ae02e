"""The listening page: the channels of every processor for held-out clips, and the encoder's nearest neighbours.

The pictures, small PNGs, are part of the page. The sounds are in a folder next to it and are loaded when they are
played. They are 16-bit FLAC, which is lossless and is played by Chromium, Firefox and Safari. All channels of a scene
are played at the same gain and drawn on the mixture's scale, so that a quiet channel sounds and looks quiet.

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

from sepscene.models.files import write_atomically
from sepscene.orchestration.records.results import ProcessorResult
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.reports.render import number, render
from sepscene.tasks.losses.mixit import si_sdr, si_sdr_improvement

MAX_SECONDS = 5.0  # of each sound: the page contains all sounds, and should stay small
PEAK = 0.9  # of full scale, to which each sound is scaled
SILENT_DB = -60.0  # dBFS; sounds below it are marked as silent
PICTURE_RANGE_DB = 70.0  # below the loudest point of a spectrogram, everything is drawn as silence
PICTURE_FRAMES = 400  # about the width of a picture in pixels


@dataclass(frozen=True)
class PageScene:
    """A held-out clip and its channels from each processor.

    Attributes:
        mixture_T: the clip; float32, like all waves of the page.
        separated_ST: processor name -> its channels.
        sources_KT: the true sources, if they are known, named by `source_labels`.
    """

    name: str
    mixture_T: np.ndarray
    separated_ST: Mapping[str, np.ndarray]
    labels: tuple[str, ...] = ()
    sources_KT: np.ndarray | None = None
    source_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neighbour:
    """A neighbour of a query: the clip, its cosine distance, and whether it has the query's class."""

    name: str
    wave_T: np.ndarray
    labels: tuple[str, ...]
    distance: float
    relevant: bool


@dataclass(frozen=True)
class Query:
    """A query by example: the clip, the class that is searched, and the neighbours, nearest first."""

    name: str
    wave_T: np.ndarray
    labels: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]
    class_name: str


@dataclass(frozen=True)
class Player:
    """One sound of the page: its file next to the page, its picture as a data URI, its level and length."""

    title: str
    audio: str
    picture: str
    level_db: float
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlayerRow:
    """Players under one heading: the channels of a processor, or the neighbours of a query."""

    title: str
    players: tuple[Player, ...]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One scene or query of the page."""

    title: str
    labels: tuple[str, ...]
    rows: tuple[PlayerRow, ...]


def write_listening_page(
    run_dir: Path,
    scenes: Iterable[PageScene],
    ladder: Sequence[ProcessorResult],
    sample_rate: int,
    queries: Iterable[Query] = (),
    has_report: bool = False,
) -> Path:
    """Write RUN/listen.html and its sounds in RUN/listen; a long sound is cut to its loudest `MAX_SECONDS`.

    Args:
        scenes: held-out clips, separated by every processor of `ladder`.
        sample_rate: of all waves, in Hz.
        has_report: whether to link to RUN/report.html, which is written after this page.
    """
    files = RunFolder(run_dir)
    shutil.rmtree(files.sounds, ignore_errors=True)
    files.sounds.mkdir(parents=True)
    builder = _BlockBuilder(sample_rate, files)
    return render(
        "listen.html.j2",
        files.listening_page,
        script="listen.js",
        title=run_dir.name,
        scenes=[builder.scene(scene, ladder) for scene in scenes],
        queries=[builder.query(query) for query in queries],
        seconds=f"{MAX_SECONDS:g}",
        report=str(RunFolder.report_html) if has_report else "",
    )


class _BlockBuilder:
    """Builds the blocks of the page and writes their sounds."""

    def __init__(self, sample_rate: int, files: RunFolder) -> None:
        self.sample_rate = sample_rate
        self.files = files
        self.written = 0
        self.samples = round(MAX_SECONDS * sample_rate)

    def scene(self, scene: PageScene, ladder: Sequence[ProcessorResult]) -> Section:
        part = self.loudest(scene.mixture_T)
        mixture_T = scene.mixture_T[part]
        sources_KT = np.empty((0, 0), np.float32) if scene.sources_KT is None else scene.sources_KT[:, part]
        names = _source_names(scene.source_labels or ("source",) * len(sources_KT))
        first = [self.player("Mixture", mixture_T, mixture_T)]
        for name, source_T in zip(names, sources_KT, strict=True):
            first.append(self.player(f"True source: {name}", source_T, mixture_T))
        rows = [PlayerRow("", tuple(first))]
        for processor in sorted(ladder, key=lambda processor: processor.step):
            separated_ST = scene.separated_ST[processor.name][:, part]
            notes, overall = _separation_notes(mixture_T, separated_ST, sources_KT, names)
            players = [
                self.player(f"{processor.name}, channel {index + 1}", wave_T, mixture_T, note)
                for index, (wave_T, note) in enumerate(zip(separated_ST, notes, strict=True))
            ]
            steps = f"{processor.name}, {processor.step:,} training steps"
            rows.append(PlayerRow(steps, tuple(players), overall))
        return Section(scene.name, scene.labels, tuple(rows))

    def query(self, query: Query) -> Section:
        players = []
        for rank, near in enumerate(query.neighbours, start=1):
            wave_T = near.wave_T[self.loudest(near.wave_T)]
            relevant = f"✓ {query.class_name}" if near.relevant else f"✗ not {query.class_name}"
            notes = (f"distance {number(near.distance)}", ", ".join(near.labels), relevant)
            players.append(self.player(f"{rank}. {near.name}", wave_T, wave_T, notes))
        wave_T = query.wave_T[self.loudest(query.wave_T)]
        first = PlayerRow("", (self.player(f"Query for {query.class_name}", wave_T, wave_T),))
        return Section(query.name, query.labels, (first, PlayerRow("Neighbours, nearest first", tuple(players))))

    def loudest(self, wave_T: np.ndarray) -> slice:
        """The part of a long sound that has the most energy and the length of a player."""
        if len(wave_T) <= self.samples:
            return slice(0, len(wave_T))
        energy_T = np.concatenate([[0.0], np.cumsum(np.square(np.nan_to_num(wave_T), dtype=np.float64))])
        start = int(np.argmax(energy_T[self.samples :] - energy_T[: -self.samples]))
        return slice(start, start + self.samples)

    def player(self, title: str, wave_T: np.ndarray, scale_T: np.ndarray, notes: tuple[str, ...] = ()) -> Player:
        """A player with the gain of `scale_T`; a sound that would clip is played more quietly, with a note."""
        finite_T = np.nan_to_num(wave_T, nan=0.0, posinf=0.0, neginf=0.0)
        gain = PEAK / max(float(np.abs(scale_T).max(initial=0.0)), 1e-4)
        own_gain = min(gain, PEAK / max(float(np.abs(finite_T).max(initial=0.0)), 1e-4))
        if own_gain < 0.99 * gain:
            notes += (f"played {20 * np.log10(gain / own_gain):.0f} dB quieter, to avoid clipping",)
        if not np.isfinite(wave_T).all():
            notes += (f"non-finite samples, played as silence: {int((~np.isfinite(wave_T)).sum())}",)
        level_db = decibel_full_scale(finite_T)
        if level_db < SILENT_DB:
            notes += ("silent",)
        path = self.files.sound(self.written)
        self.written += 1
        flac = io.BytesIO()
        soundfile.write(flac, finite_T * own_gain, self.sample_rate, subtype="PCM_16", format="FLAC")
        write_atomically(path, flac.getvalue())
        return Player(
            title=title,
            audio=path.relative_to(self.files.path).as_posix(),
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


def _separation_notes(
    mixture_T: np.ndarray, separated_ST: np.ndarray, sources_KT: np.ndarray, names: tuple[str, ...]
) -> tuple[list[tuple[str, ...]], str]:
    """For each channel, its closest source with the SI-SDR; for all channels, the mean improvement."""
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
    """The labels; equal ones are numbered."""
    counts = Counter(labels)
    return tuple(f"{name} {labels[: k + 1].count(name)}" if counts[name] > 1 else name for k, name in enumerate(labels))


def decibel_full_scale(wave_T: np.ndarray) -> float:
    """RMS level in dB relative to 1.0; −120 for silence."""
    rms = np.sqrt(np.mean(np.square(wave_T, dtype=np.float64))) if len(wave_T) else 0.0
    return float(20 * np.log10(max(rms, 1e-6)))
