"""Cost of stored crops: raw PCM compared with FLAC and zstd; reads and writes of the store; a large index.

    python -m benchmarks.store [--audio FOLDER] [--entries 1000000]

Every number is the median over several rounds of all candidates, so that other load slows all of them equally: the
ratios are more reliable than the microseconds.
"""

import argparse
import io
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import soundfile
import torch
from rich.console import Console
from rich.table import Table

from sepscene.augment.audio import read_audio
from sepscene.augment.store.separated_store import SeparatedStore, StoreSettings
from sepscene.augment.store.shards import Entry, EntryLocation, StoreKey, shard_pieces
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig

RATE = 16_000
CLIP = 10 * RATE
CROP = 15_360
ROUNDS = 7
LEVELS = np.array([-20.0, -30.0], np.float32)
# AudioSet: 2 M clips x 3 processors, one entry each.
AUDIOSET_ENTRIES = 6_000_000


def separated_clips(folder: Path, count: int) -> list[np.ndarray]:
    """`count` clips of 10 s, each int16 (2, T): real recordings, separated by an untrained tiny TDCN++."""
    separator = TDCNpp(TDCNppConfig.tiny()).eval()
    clips = []
    files = sorted(path for path in folder.iterdir() if path.suffix in (".ogg", ".wav", ".flac"))
    for path in files[:: max(1, len(files) // count)][:count]:
        wave_T = np.resize(read_audio(str(path), RATE), CLIP).astype(np.float32)
        with torch.inference_mode():
            separated_ST = separator(torch.from_numpy(wave_T)[None])[0].numpy()
        clips.append(np.round(np.clip(separated_ST, -1, 1) * 32767).astype(np.int16))
    return clips


def interleaved(candidates: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each candidate over ROUNDS rounds of all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: median(values) for name, values in seconds.items()}


class Pcm:
    """Raw samples with a CRC per segment, as in augment/store/shards.py."""

    @staticmethod
    def encode(wave_T: np.ndarray) -> bytes:
        data = wave_T.tobytes()
        return zlib.crc32(data).to_bytes(4, "little") + data

    @staticmethod
    def decode(data: bytes, samples: int) -> np.ndarray:
        payload = memoryview(data)[4:]
        assert zlib.crc32(payload) == int.from_bytes(data[:4], "little")
        return np.frombuffer(payload, np.int16)


class Flac:
    """FLAC by libsndfile at its fastest level."""

    @staticmethod
    def encode(wave_T: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, wave_T, RATE, format="FLAC", subtype="PCM_16", compression_level=0.0)
        return buffer.getvalue()

    @staticmethod
    def decode(data: bytes, samples: int) -> np.ndarray:
        return soundfile.read(io.BytesIO(data), dtype="int16")[0]


class Zstd:
    """zstd of the differences of adjacent samples, with high and low bytes separated."""

    codec = pa.Codec("zstd")

    @classmethod
    def encode(cls, wave_T: np.ndarray) -> bytes:
        step = np.diff(wave_T, prepend=np.int16(0))
        folded = ((step.astype(np.int32) << 1) ^ (step.astype(np.int32) >> 31)).astype(np.uint16)
        return cls.codec.compress(folded.view(np.uint8).reshape(-1, 2).T.tobytes(), asbytes=True)

    @classmethod
    def decode(cls, data: bytes, samples: int) -> np.ndarray:
        halves = np.frombuffer(cls.codec.decompress(data, 2 * samples), np.uint8).reshape(2, samples)
        folded = np.ascontiguousarray(halves.T).view(np.uint16)[:, 0]
        step = (folded >> 1).astype(np.int16) ^ -(folded & 1).astype(np.int16)
        return np.cumsum(step, dtype=np.int16)


Codec = type[Pcm] | type[Flac] | type[Zstd]


def codecs(clips: list[np.ndarray], console: Console) -> None:
    """Print the size, the time to write a clip and the time to read a crop, for each format and segment length."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, CLIP - CROP, 64)
    candidates: list[tuple[Codec, int]] = [(Pcm, 4096), (Zstd, 8000), (Flac, 8000), (Flac, 16_000)]
    encode: dict[str, Callable[[], None]] = {}
    read: dict[str, Callable[[], None]] = {}
    share = {}
    for codec, segment in candidates:
        name = f"{codec.__name__} {segment}"
        cut = [[clip[0, i : i + segment] for i in range(0, CLIP, segment)] for clip in clips]
        stored = [[codec.encode(piece) for piece in pieces] for pieces in cut]
        share[name] = sum(len(s) for pieces in stored for s in pieces) / (2 * CLIP * len(clips))

        def write(codec=codec, cut=cut) -> None:
            for pieces in cut:
                for piece in pieces:
                    codec.encode(piece)

        def crop(codec=codec, segment=segment, stored=stored, cut=cut) -> None:
            for n, start in enumerate(starts):
                first = start // segment
                last = (start + CROP - 1) // segment
                pieces = stored[n % len(stored)][first : last + 1]
                lengths = [len(piece) for piece in cut[n % len(cut)][first : last + 1]]
                wave_T = np.concatenate([codec.decode(p, t) for p, t in zip(pieces, lengths, strict=True)])
                wave_T[start - first * segment :][:CROP].copy()

        encode[name] = write
        read[name] = crop
    encode_seconds = interleaved(encode)
    read_seconds = interleaved(read)
    table = Table("format, segment", "bytes / PCM", "write a clip (2 channels)", "crop of 0.96 s", "crop / PCM")
    for name in share:
        table.add_row(
            name,
            f"{share[name]:.2f}",
            f"{2e3 * encode_seconds[name] / len(clips):.1f} ms",
            f"{1e6 * read_seconds[name] / len(starts):.0f} us",
            f"{read_seconds[name] / read_seconds['Pcm 4096']:.1f}x",
        )
    console.print(table)


def reads_and_writes(clips: list[np.ndarray], folder: Path, console: Console) -> None:
    """Print puts and crops per second of one handle on a local disk with page cache, compared with a FLAC file."""
    store = SeparatedStore(str(folder), StoreSettings(publish_seconds=1e6, publish_max_seconds=1e6))
    rng = np.random.default_rng(0)
    each = 60
    keys = [StoreKey(f"{n:064x}", "S2", "16000 Hz") for n in range(ROUNDS * each)]
    rounds = []
    for first in range(0, len(keys), each):
        begin = time.perf_counter()
        for n, key in enumerate(keys[first : first + each]):
            store.put(key, clips[n % len(clips)], LEVELS)
        store.flush()
        rounds.append(time.perf_counter() - begin)
    put = median(rounds) / each
    flac = folder / "whole.flac"
    soundfile.write(flac, clips[0][0], RATE, subtype="PCM_16", compression_level=0.0)
    picks = [(keys[rng.integers(len(keys))], int(rng.integers(2)), int(rng.integers(CLIP - CROP))) for _ in range(256)]

    def crops() -> None:
        for key, channel, start in picks:
            assert store.get_crop(key, channel, start, CROP) is not None

    def levels() -> None:
        for key, _, _ in picks:
            store.levels(key)

    def whole_files() -> None:
        for _, _, start in picks[:32]:
            soundfile.read(flac, start=start, frames=CROP, dtype="int16")

    begin_counters = store.counters
    seconds = interleaved({"crops": crops, "levels": levels, "FLAC file": whole_files})
    read = (store.counters.bytes_read - begin_counters.bytes_read) / (store.counters.hits - begin_counters.hits)
    crop = seconds["crops"] / len(picks)
    flac_crop = seconds["FLAC file"] / 32
    written = store.counters.bytes_written / len(keys)
    console.print(f"puts, published: {1 / put:,.0f}/s, {written / put / 1e6:,.0f} MB/s")
    console.print(f"crops: {1 / crop:,.0f}/s of {CROP} samples, {read:,.0f} bytes read for {2 * CROP:,} wanted")
    console.print(f"levels: {len(picks) / seconds['levels']:,.0f}/s")
    console.print(f"a crop from a FLAC file per channel, by seeking: {flac_crop / crop:.1f}x the time")
    store.close()


def index_at_scale(entries: int, folder: Path, console: Console) -> None:
    """Open a store with many entries. Its shards contain only footers, because opening reads nothing else."""
    settings = StoreSettings()
    entry_bytes = 2 * (2 * CLIP + 4 * -(-CLIP // settings.segment_samples))
    per_shard = settings.shard_bytes // entry_bytes
    store = SeparatedStore(str(folder))
    names = np.random.default_rng(0)
    last = StoreKey("", "", "")
    for _ in range(-(-entries // per_shard)):
        shard = []
        for _ in range(per_shard):
            last = StoreKey(names.bytes(32).hex(), "S2", "16000 Hz, 10 s")
            shard.append(Entry(last, EntryLocation(0, 2, CLIP, settings.segment_samples), LEVELS, b""))
        store.folder.publish(shard_pieces(shard, settings.segment_samples)[0])
    listing = store.folder.shards()
    footers = sum(info.size for info in listing)
    begin = time.perf_counter()
    opened = SeparatedStore(str(folder))
    open_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    opened.refresh()
    refresh_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(10_000):
        assert last in opened
    find_seconds = (time.perf_counter() - begin) / 10_000
    count = len(opened)
    scale = AUDIOSET_ENTRIES / count
    console.print(f"{count:,} entries in {len(listing):,} shards of {per_shard * entry_bytes / 1e6:.0f} MB")
    index_bytes = opened._index.nbytes
    console.print(f"index in memory: {index_bytes / count:.0f} bytes per entry, {index_bytes / 1e6:.0f} MB")
    console.print(f"footers on disk: {footers / count:.0f} bytes per entry, {footers / 1e6:.0f} MB")
    console.print(f"open: {open_seconds:.1f} s; refresh without changes: {1e3 * refresh_seconds:.0f} ms")
    console.print(f"find: {1e6 * find_seconds:.0f} us")
    console.print(
        f"AudioSet x 3 processors ({AUDIOSET_ENTRIES:,} entries): {scale * len(listing):,.0f} objects, "
        f"{AUDIOSET_ENTRIES * entry_bytes / 1e12:.2f} TB, {scale * index_bytes / 1e6:.0f} MB of index"
    )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "esc10" / "audio"
    parser.add_argument("--audio", type=Path, default=default, help="folder of recordings")
    parser.add_argument("--entries", type=int, default=1_000_000, help="number of entries of the large index")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120, highlight=False)
    clips = separated_clips(arguments.audio, 12)
    codecs(clips, console)
    for part in (
        lambda at: reads_and_writes(clips, at, console),
        lambda at: index_at_scale(arguments.entries, at, console),
    ):
        folder = Path(tempfile.mkdtemp())
        try:
            part(folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
