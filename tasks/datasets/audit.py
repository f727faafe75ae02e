"""What a data set holds in truth: every recording is decoded and compared, before a run depends on it."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sepscene.augment.audio import ClipError, Recording, check_audio, content_hash
from sepscene.augment.locations import NO_SUCH_FILE
from sepscene.tasks.datasets.manifest import Manifest
from sepscene.tasks.datasets.survey import NOT_UTF8

_LISTED = 10  # entries of a long list that the text shows
_QUIET_DB = -70.0  # RMS in dBFS below which nothing but noise is left of a 16-bit recording
_SHORT = 0.1
_LONG = 6 * 3600.0  # seconds
_FAR = 20  # times the median: a recording that nobody has cut


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
        missing: clip_ids without a recording, those that the data set lists and its folder lacks included.
        corrupt: (clip_id, cause) of recordings that are there and cannot be used.
        durations: of the readable recordings; None where there are none.
        sample_rates: (Hz, recordings), most frequent first.
        channels: (channels, recordings), most frequent first.
        splits: (split, clips).
        labels: (class, clips), most frequent first; classes without a clip too.
        unlabelled: clips without a label.
        duplicates: groups of clip_ids whose recordings are equal byte for byte, though they are other files.
        leaking: how many of these groups lie in more than one split.
        sound: (what is strange about how recordings sound, how many, the first clip_ids), in a fixed order.
        remarks: what the reader left out, by reason, and what else it has to say.
        unnamed: files whose name is not UTF-8, which no manifest can hold.
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
        """SHA-256 over all findings: equal digests mean equal data, wherever it lies."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The findings in plain lines."""
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
            lines.append(f"WARNING     {self.leaking} of the duplicates lie in more than one split")
        for what, count, names in self.sound:
            more = ", …" if count > len(names) else ""
            lines.append(f"sound       {count} {what}: {', '.join(names)}{more}")
        lines += [f"note        {remark}" for remark in self.remarks]
        lines.append(f"digest      {self.digest}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Finding:
    """What is known of one recording: what it is, or the cause why it cannot be used."""

    content: str
    recording: Recording | None
    cause: str


def audit(manifest: Manifest, threads: int = 4, progress: Callable[[int], None] | None = None) -> Audit:
    """Decode every recording of a manifest to its end, and hash it.

    Args:
        manifest: all of a data set, or a selection.
        threads: recordings decoded at the same time (decoding releases Python's lock).
        progress: called with the number of recordings done.
    """
    uris = list(dict.fromkeys(manifest.clips["uri"].to_pylist()))
    found: dict[str, _Finding] = {}
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for uri, finding in zip(uris, pool.map(_examine, uris), strict=True):
            found[uri] = finding
            if progress is not None:
                progress(len(found))
    return _summary(manifest, found)


def _examine(uri: str) -> _Finding:
    content = ""
    try:
        content = content_hash(uri)
        return _Finding(content, check_audio(uri), "")
    except ClipError as error:
        return _Finding(content, None, error.cause)


def _summary(manifest: Manifest, found: dict[str, _Finding]) -> Audit:
    rows = manifest.clips.to_pylist()
    missing = list(manifest.absent)
    corrupt = []
    owners: dict[str, list[dict[str, Any]]] = defaultdict(list)
    content = hashlib.sha256()
    for row in rows:
        finding = found[row["uri"]]
        content.update(f"{row['clip_id']}\0{finding.content}\n".encode())
        if finding.recording is None:
            if finding.cause == NO_SUCH_FILE:
                missing.append(row["clip_id"])
            else:
                corrupt.append((row["clip_id"], finding.cause))
        elif row["offset_seconds"] >= finding.recording.seconds:
            corrupt.append((row["clip_id"], f"its offset is past the end ({finding.recording.seconds:.3f} s)"))
        if finding.content:
            owners[finding.content].append(row)
    groups = [group for group in owners.values() if len({row["uri"] for row in group}) > 1]
    recordings = [finding.recording for finding in found.values() if finding.recording is not None]
    label_counts = Counter(label for row in rows for label in row["labels"])
    return Audit(
        manifest_digest=manifest.digest(),
        content_digest=content.hexdigest(),
        clips=len(rows),
        readable=len(rows) - len(corrupt) - (len(missing) - len(manifest.absent)),
        missing=tuple(missing),
        corrupt=tuple(corrupt),
        durations=_durations(recordings),
        sample_rates=tuple(Counter(recording.sample_rate for recording in recordings).most_common()),
        channels=tuple(Counter(recording.channels for recording in recordings).most_common()),
        splits=tuple(sorted(Counter(row["split"] for row in rows).items())),
        labels=tuple(sorted(((n, label_counts[n]) for n in manifest.classes), key=lambda item: -item[1])),
        unlabelled=sum(not row["labels"] for row in rows),
        duplicates=tuple(tuple(row["clip_id"] for row in group) for group in groups),
        leaking=sum(len({row["split"] for row in group}) > 1 for group in groups),
        sound=_sound(rows, found),
        remarks=tuple(manifest.remarks()),
        unnamed=sum(entry.count for entry in manifest.survey.skipped if entry.reason == NOT_UTF8)
        if manifest.survey
        else 0,
    )


def _sound(rows: list[dict[str, Any]], found: dict[str, _Finding]) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """What is strange about the sound of the recordings: each recording is named once for each of it."""
    owner = {row["uri"]: row["clip_id"] for row in reversed(rows)}
    recordings = {owner[uri]: finding.recording for uri, finding in found.items() if finding.recording is not None}
    median = float(np.median([recording.seconds for recording in recordings.values()])) if recordings else 0.0
    named: dict[str, list[str]] = defaultdict(list)
    for name, recording in recordings.items():
        for what in _oddities(recording, median):
            named[what].append(name)
    return tuple((what, len(names), tuple(names[:3])) for what, names in sorted(named.items()))


def _oddities(recording: Recording, median_seconds: float) -> list[str]:
    several = recording.channels > 1
    seconds = recording.seconds
    found = {
        "silent, every sample is 0": recording.peak == 0,
        f"nearly silent, below {_QUIET_DB:g} dBFS": recording.peak > 0 and recording.level_db < _QUIET_DB,
        "have channels that cancel each other in the mean, the loudest is used": recording.cancels,
        "have a silent channel": several and recording.quietest_db < _QUIET_DB <= recording.level_db,
        "clipped, more than 0.1 % of the samples are at full scale": recording.clipped > 1e-3,
        "go beyond full scale and are limited to it": recording.peak > 1,
        "have a constant offset (DC) of more than 0.05": recording.offset > 0.05,
        f"shorter than {_SHORT:g} s": seconds < _SHORT,
        f"longer than {_LONG / 3600:g} h, or {_FAR} times the median": seconds > min(_LONG, _FAR * median_seconds),
    }
    return [what for what, is_so in found.items() if is_so]


def _durations(recordings: list[Recording]) -> Durations | None:
    if not recordings:
        return None
    seconds = np.array([recording.seconds for recording in recordings])
    metrics = (seconds.sum(), seconds.min(), np.median(seconds), seconds.max())
    return Durations(*(round(float(metric), 6) for metric in metrics))


def _counts(items: Sequence[tuple[object, int]], unit: str = "") -> str:
    shown = ", ".join(f"{name}{unit} {count}" for name, count in items[:_LISTED])
    return f"{shown}, and {len(items) - _LISTED} more" if len(items) > _LISTED else shown or "none"


def _section(title: str, entries: Sequence[str]) -> list[str]:
    lines = [f"{title:<11} {len(entries)}", *(f"  {entry}" for entry in entries[:_LISTED])]
    return [*lines, f"  and {len(entries) - _LISTED} more"] if len(entries) > _LISTED else lines
