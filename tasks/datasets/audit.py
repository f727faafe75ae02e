"""Check the content of a data set before a run uses it.

`audit` decodes and compares every recording; `quick_check` takes seconds, and every run starts with it.

Shapes: N clips, R recordings, B bytes of a hash, T samples.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sepscene.augment.audio import AudioFormat, ClipError, Recording, check_audio, content_hash, read_sound
from sepscene.augment.locations import NO_SUCH_FILE
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.manifest import Manifest, in_parts, repeated, text_hashes
from sepscene.tasks.datasets.survey import NOT_UTF8

_LISTED = 10  # entries of a long list that the text shows
_QUIET_DB = -70.0  # RMS in dBFS below which a 16-bit recording is mostly rounding noise
_SHORT = 0.1  # seconds; shorter than any sound event of the usual data sets
_LONG = 6 * 3600.0  # seconds
_FAR = 20  # times the median: probably a recording that was not cut into clips
_AT_ONCE = 1024  # recordings queued for the threads; ten million would take 10 GB
_FIRST_LOOK_CLIPS = 24  # spread over the manifest

_UNUSUAL: dict[str, Callable[[Recording], bool]] = {
    "silent, every sample is 0": lambda one: one.peak == 0,
    f"nearly silent, below {_QUIET_DB:g} dBFS": lambda one: one.peak > 0 and one.level_db < _QUIET_DB,
    "have channels that cancel each other in the mean; the loudest one is used": lambda one: one.cancels,
    "have a silent channel": lambda one: one.channels > 1 and one.quietest_db < _QUIET_DB <= one.level_db,
    "clipped, more than 0.1 % of the samples are at full scale": lambda one: one.clipped > 1e-3,
    "exceed full scale and are clipped": lambda one: one.peak > 1,
    "have a constant offset (DC) of more than 0.05": lambda one: one.offset > 0.05,
    f"shorter than {_SHORT:g} s": lambda one: one.seconds < _SHORT,
}
"""Unusual properties of a single recording."""

FINDING = np.dtype(
    [("content", np.uint8, 32), ("seconds", "f8"), ("sample_rate", "u4"), ("channels", "u2"), ("oddities", "u2")]
)
"""What is found in a recording: SHA-256 (zeros if nothing could be read), length, rate in Hz (0 if it cannot be used),
channels, and one bit per entry of `_UNUSUAL`. Ten million Python objects in place of these 48 bytes would take 5 GB.
"""


@dataclass(frozen=True)
class Durations:
    """Lengths of the recordings in seconds."""

    total: float
    shortest: float
    median: float
    longest: float


@dataclass(frozen=True)
class Audit:
    """The findings.

    Attributes:
        manifest_digest: of the manifest that was audited.
        content_digest: SHA-256 over every clip's name and its recording's bytes.
        clips: how many the manifest lists.
        readable: how many of them can be used.
        missing: clip_ids without a recording, including those that are listed but not in the folder of the data set.
        corrupt: (clip_id, cause) of recordings that exist but cannot be used.
        durations: of the readable recordings; None if there are none.
        sample_rates: (Hz, recordings), most frequent first.
        channels: (channels, recordings), most frequent first.
        splits: (split, clips).
        labels: (class, clips), most frequent first, including classes without a clip.
        unlabelled: number of clips without a label.
        duplicates: groups of clip_ids whose recordings are different files with identical bytes.
        leaking: how many of these groups are in more than one split.
        sound: (unusual property of the sound, number of recordings, first clip_ids), in a fixed order.
        remarks: what the reader left out, by reason, and its notes.
        unnamed: number of files whose name is not UTF-8, which a manifest cannot contain.
    """

    manifest_digest: str
    content_digest: str
    clips: int
    readable: int
    missing: tuple[str, ...]
    corrupt: tuple[tuple[str, str], ...]
    durations: Durations | None
    sample_rates: tuple[tuple[int, int], ...]
    channels: tuple[tuple[int, int], ...]
    splits: tuple[tuple[str, int], ...]
    labels: tuple[tuple[str, int], ...]
    unlabelled: int
    duplicates: tuple[tuple[str, ...], ...]
    leaking: int
    sound: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    remarks: tuple[str, ...] = ()
    unnamed: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 over all findings: equal digests mean equal data, regardless of its location."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The findings as lines of text."""
        lines = [
            f"clips       {self.clips}, readable {self.readable}",
            f"splits      {_counts(self.splits)}",
            f"classes     {len(self.labels)}: {_counts(self.labels)}; without a label {self.unlabelled}",
        ]
        if self.durations is not None:
            d = self.durations
            lines.append(
                f"duration    {d.total / 3600:.2f} h; shortest {d.shortest:.2f} s, median {d.median:.2f} s, "
                f"longest {d.longest:.2f} s"
            )
        lines.append(f"rates       {_counts(self.sample_rates, ' Hz')}")
        lines.append(f"channels    {_counts(self.channels)}")
        lines += _section("missing", self.missing)
        lines += _section("corrupt", [f"{name}: {cause}" for name, cause in self.corrupt])
        lines += _section("duplicates", [" = ".join(group) for group in self.duplicates])
        if self.leaking:
            lines.append(f"WARNING     {self.leaking} of the duplicates are in more than one split")
        for what, count, names in self.sound:
            more = ", …" if count > len(names) else ""
            lines.append(f"sound       {count} {what}: {', '.join(names)}{more}")
        lines += [f"note        {remark}" for remark in self.remarks]
        lines.append(f"digest      {self.digest}")
        return "\n".join(lines)


def audit(manifest: Manifest, threads: int = 4, progress: Callable[[int], None] | None = None) -> Audit:
    """Decode every recording of a manifest to its end, and hash it.

    Args:
        manifest: all of a data set, or a selection.
        threads: recordings decoded at the same time (decoding releases the GIL).
        progress: called with the number of recordings done.
    """
    uris, recording_N = recordings_of(manifest)
    found_R = np.zeros(len(uris), FINDING)
    causes: dict[int, str] = {}

    def examine(number: int, uri: str) -> None:
        try:
            found_R["content"][number] = np.frombuffer(bytes.fromhex(content_hash(uri)), np.uint8)
            record(found_R, number, check_audio(uri))
        except ClipError as error:
            causes[number] = error.cause

    with ThreadPoolExecutor(max_workers=threads) as pool:
        for start in range(0, len(uris), _AT_ONCE):
            some = uris.slice(start, _AT_ONCE).to_pylist()
            for done, _ in enumerate(pool.map(examine, range(start, len(uris)), some), start + 1):
                if progress is not None:
                    progress(done)
    return summary(manifest, found_R, causes, recording_N)


def recordings_of(manifest: Manifest) -> tuple[pa.ChunkedArray | pa.Array, np.ndarray]:
    """The distinct recordings, in the order of their first clips, and the index of each clip's recording, (N,)."""
    uris = manifest.clips["uri"]
    if not len(repeated(text_hashes(uris))):  # the usual case: each clip has its own recording
        return uris, np.arange(len(uris), dtype=np.int32)
    coded = uris.dictionary_encode()
    return coded.chunk(0).dictionary, np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks])


def record(found_R: np.ndarray, number: int, recording: Recording) -> None:
    """Store the findings on a recording that can be used."""
    found_R["seconds"][number] = recording.seconds
    found_R["sample_rate"][number] = recording.sample_rate
    found_R["channels"][number] = recording.channels
    found_R["oddities"][number] = sum(is_odd(recording) << bit for bit, is_odd in enumerate(_UNUSUAL.values()))


def summary(manifest: Manifest, found_R: np.ndarray, causes: dict[int, str], recording_N: np.ndarray) -> Audit:
    """The audit of a manifest whose recordings have been examined.

    Args:
        manifest: what was examined.
        found_R: the findings, `FINDING`.
        causes: why recordings cannot be used, by their index.
        recording_N: index of each clip's recording.
    """
    clips = manifest.clips
    missing = list(manifest.absent)
    corrupt = []
    usable_R = found_R[found_R["sample_rate"] > 0]
    end_N = np.where(found_R["sample_rate"] > 0, found_R["seconds"], -1.0)[recording_N]
    faulty = np.flatnonzero(clips["offset_seconds"].to_numpy() >= end_N)
    for name, recording in zip(_at(clips["clip_id"], faulty), recording_N[faulty].tolist(), strict=True):
        cause = causes.get(recording, f"its offset is past the end ({found_R['seconds'][recording]:.3f} s)")
        if cause == NO_SUCH_FILE:
            missing.append(name)
        else:
            corrupt.append((name, cause))
    groups = _duplicates(found_R["content"], recording_N)
    labels = Counter(dict(_counted(pc.list_flatten(clips["labels"]))))
    return Audit(
        manifest_digest=manifest.digest(),
        content_digest=_content_digest(clips["clip_id"], found_R["content"], recording_N),
        clips=len(clips),
        readable=len(clips) - len(faulty),
        missing=tuple(missing),
        corrupt=tuple(corrupt),
        durations=_durations(usable_R["seconds"]),
        sample_rates=_most_frequent(usable_R["sample_rate"]),
        channels=_most_frequent(usable_R["channels"]),
        splits=tuple(sorted(_counted(clips["split"]))),
        labels=tuple(sorted(((n, labels[n]) for n in manifest.classes), key=lambda item: -item[1])),
        unlabelled=manifest.unlabelled,
        duplicates=tuple(tuple(_at(clips["clip_id"], group)) for group in groups),
        leaking=sum(len(set(_at(clips["split"], group))) > 1 for group in groups),
        sound=_sound(clips["clip_id"], found_R, recording_N),
        remarks=tuple(manifest.remarks()),
        unnamed=sum(entry.count for entry in manifest.skipped if entry.reason == NOT_UTF8),
    )


def _at(column: pa.ChunkedArray, rows: np.ndarray) -> list[str]:
    return list(column.take(pa.array(rows)).to_pylist())


def _counted(column: pa.Array | pa.ChunkedArray) -> list[tuple[Any, int]]:
    """(value, count), in the order of first occurrence."""
    return [(row["values"], row["counts"]) for row in pc.value_counts(column).to_pylist()]


def _most_frequent(values: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(value, count), most frequent first; ties in the order of first occurrence."""
    return tuple(sorted(_counted(pa.array(values)), key=lambda counted: -counted[1]))


def _content_digest(names: pa.ChunkedArray, content_RB: np.ndarray, recording_N: np.ndarray) -> str:
    digest = hashlib.sha256()
    done = 0
    for some in in_parts(names):
        content_NB = content_RB[recording_N[done : done + len(some)]]
        done += len(some)
        for name, content in zip(some, content_NB, strict=True):
            digest.update(f"{name}\0{content.tobytes().hex() if content.any() else ''}\n".encode())
    return digest.hexdigest()


def _duplicates(content_RB: np.ndarray, recording_N: np.ndarray) -> list[np.ndarray]:
    """Groups of clips, in order, whose recordings are different files with identical bytes."""
    key_R = np.ascontiguousarray(content_RB[:, :8]).view(np.uint64)[:, 0]
    twice = repeated(key_R)
    owners: dict[bytes, list[int]] = defaultdict(list)
    for row in np.flatnonzero(np.isin(key_R, twice[twice != 0])[recording_N]).tolist():
        owners[content_RB[recording_N[row]].tobytes()].append(row)
    groups = [np.array(rows) for rows in owners.values()]
    return [rows for rows in groups if len(np.unique(recording_N[rows])) > 1]


def _sound(
    names: pa.ChunkedArray, found_R: np.ndarray, recording_N: np.ndarray
) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """Unusual properties of the sound; a recording is counted once per property."""
    usable_R = found_R[found_R["sample_rate"] > 0]
    longest = min(_LONG, _FAR * float(np.median(usable_R["seconds"]))) if len(usable_R) else _LONG
    odd = {what: (found_R["oddities"] >> bit) & 1 == 1 for bit, what in enumerate(_UNUSUAL)}
    odd[f"longer than {_LONG / 3600:g} h, or {_FAR} times the median"] = found_R["seconds"] > longest
    properties = []
    for what, odd_R in sorted(odd.items()):
        first = [int(np.argmax(recording_N == recording)) for recording in np.flatnonzero(odd_R)[:3]]
        if first:
            properties.append((what, int(odd_R.sum()), tuple(_at(names, np.array(first)))))
    return tuple(properties)


def _durations(seconds: np.ndarray) -> Durations | None:
    if not len(seconds):
        return None
    values = (seconds.sum(), seconds.min(), np.median(seconds), seconds.max())
    return Durations(*(round(float(value), 6) for value in values))


def _counts(items: Sequence[tuple[object, int]], unit: str = "") -> str:
    shown = ", ".join(f"{name}{unit} {count}" for name, count in items[:_LISTED])
    return f"{shown}, and {len(items) - _LISTED} more" if len(items) > _LISTED else shown or "none"


def _section(title: str, entries: Sequence[str]) -> list[str]:
    lines = [f"{title:<11} {len(entries)}", *(f"  {entry}" for entry in entries[:_LISTED])]
    return [*lines, f"  and {len(entries) - _LISTED} more"] if len(entries) > _LISTED else lines


def quick_check(manifest: Manifest, audio: AudioFormat) -> list[str]:
    """Check some clips, and return notes for the user on those that are silent or short.

    Clips that cannot be read are skipped here; the run quarantines them.

    Raises:
        ManifestError: all checked clips are silent.
    """
    rows = np.unique(np.linspace(0, len(manifest) - 1, _FIRST_LOOK_CLIPS).round().astype(int)).tolist()
    seconds = []
    silent = 0
    for clip in manifest.clips.take(rows).to_pylist():
        try:
            sound_T = read_sound(clip["uri"], audio, clip["offset_seconds"])
        except ClipError:
            continue
        seconds.append(len(sound_T) / audio.sample_rate)
        silent += not sound_T.any()
    if not seconds:
        return []
    if silent == len(seconds):
        raise ManifestError(
            f"all {silent} clips that were checked are silent (every sample is 0), e.g. "
            f"{manifest.clips['uri'][rows[0]]}: nothing can be learned from them; run `sepscene data audit`"
        )
    lines = []
    if silent:
        lines.append(f"{silent} of {len(seconds)} clips that were checked are silent; run `sepscene data audit`")
    short = [length for length in seconds if length < 0.999 * audio.clip_seconds]
    if short:
        lines.append(
            f"{len(short)} of {len(seconds)} clips that were checked are shorter than audio.clip_seconds "
            f"({audio.clip_seconds:g} s), half of them shorter than {np.median(short):.2f} s: views are cropped within "
            "their sound, and they are evaluated at their own length; a smaller audio.clip_seconds is faster"
        )
    return lines
