"""The data that all studies of one storage share: scenes, and the log-mels of all clips and their separated channels,
as float16 on disk.

Separation and front-end run once for all trials. Views are then cropped from the log-mels, at whole frames, so that a
view costs only a copy. If filling a store is interrupted, it continues after the last clips that were saved.

Shapes: N clips, S channels, T samples, L frames of a clip, F bands.
"""

import hashlib
import json
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.console import Console

from sepscene.augment.audio import read_clip
from sepscene.augment.separation.service import open_separator
from sepscene.augment.synthetic.scenes import (
    SceneConfig,
    background_path,
    generate_scene,
    profile_of_length,
    write_scenes,
)
from sepscene.augment.synthetic.shared_events import describe_shared_events
from sepscene.augment.views import Views, from_pcm, levels_db, to_pcm
from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.frontend import LogMel
from sepscene.models.files import replace_file
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.arrays import create_array
from sepscene.orchestration.records.files import exclusive_lock, read_typed, write_text_atomically
from sepscene.orchestration.records.sweep_folder import LogMelFolder, StudyData
from sepscene.tasks.datasets.readers import Manifest, read_manifest
from sepscene.tasks.evaluation.shortcuts import ClipFeatures, clip_features

SAVE_EVERY = 32
"""The progress of a part is saved after this many clips; at most as many are computed again after an interruption."""

PRINT_EVERY = 256
"""The progress of a part is printed after this many clips; a multiple of `SAVE_EVERY`."""

EXAMPLE_SCENES = 16
"""Number of scenes from which it is estimated how often two crops share an event."""


class LogMelStore:
    """Log-mels of one manifest with one front-end, in parts (N, S, L, F): one for mixtures and one per processor."""

    def __init__(self, root: Path, experiment: Experiment, manifest: Manifest) -> None:
        self.experiment = experiment
        self.manifest = manifest
        self.front_end = LogMel(experiment.front_end.changed({"level": "kept"}))  # see `LogMel.normalise_patches`
        front_end = experiment.front_end.model_dump(exclude={"level"})
        what = [manifest.digest(), experiment.audio.model_dump(), front_end]
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / name
        self.files = LogMelFolder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def frames(self) -> int:
        """Number of frames L of a clip."""
        return self.experiment.front_end.frames(self.experiment.audio.samples)

    def mixtures(self, background: int = 0) -> np.ndarray:
        """Log-mels of the clips (N, L, F), in the version with this background."""
        return self._open(self.files.mixtures(background))[:, 0]

    @cached_property
    def features(self) -> ClipFeatures:
        """Background and level of the clips."""
        return clip_features(self.mixtures())

    def channels(self, folder: str, background: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Log-mels (N, S, L, F) and levels in dBFS (N, S) of the channels of the separator in a folder.

        Args:
            background: number of the background; 0 is that of the original clips.
        """
        part = self._part(folder, background)
        return self._open(part), np.load(self.files.levels(part))

    def fill(self, processors: dict[str, str], backgrounds: int = 1, console: Console | None = None) -> None:
        """Compute missing log-mels of mixtures and of the channels of processors (name -> folder), for each background.

        Raises:
            SepsceneError: when a clip cannot be read, or a separator is damaged.
        """
        for background in range(backgrounds):
            self._fill(self.files.mixtures(background), None, background, console)
            for name, folder in processors.items():
                separator = open_separator(name, folder, self.experiment.audio)
                self._fill(self._part(folder, background), separator, background, console)

    def _part(self, folder: str, background: int) -> str:
        return self.files.channels(read_card(folder).digest, background)

    def _done(self, part: str) -> int:
        path = self.files.done(part)
        return read_typed(path, int) if path.exists() else 0

    def _open(self, part: str) -> np.ndarray:
        if self._done(part) < len(self.manifest):
            raise SepsceneError(f"{self.folder / part} is incomplete: fill the store of log-mels first")
        return np.load(self.files.array(part), mmap_mode="r")

    def _fill(self, part: str, separator: torch.nn.Module | None, background: int, console: Console | None) -> None:
        done = self._done(part)
        clips = len(self.manifest)
        if done == clips:
            return
        channels: int = 1 if separator is None else separator.sources  # type: ignore[assignment]
        shape = (clips, channels, self.frames, self.experiment.front_end.mel_bands)
        logmel_NSLF = self._array(self.files.array(part), shape, np.float16)
        levels_NS = self._array(self.files.levels(part), shape[:2], np.float32)
        uris = self.manifest.clips["uri"].to_pylist()
        offsets = self.manifest.clips["offset_seconds"].to_pylist()
        for n in range(done, clips):
            uri = str(background_path(uris[n], background)) if background else uris[n]
            pcm_ST = to_pcm(read_clip(uri, self.experiment.audio, offsets[n]))[None]
            with torch.inference_mode():
                if separator is not None:
                    pcm_ST = to_pcm(separator(torch.from_numpy(from_pcm(pcm_ST)))[0].float().numpy())
                logmel_NSLF[n] = self.front_end(torch.from_numpy(from_pcm(pcm_ST))).numpy()
            levels_NS[n] = levels_db(pcm_ST)
            if (n + 1) % SAVE_EVERY == 0 or n + 1 == clips:
                logmel_NSLF.flush()
                levels_NS.flush()
                write_text_atomically(self.files.done(part), str(n + 1))
                if console is not None and ((n + 1) % PRINT_EVERY == 0 or n + 1 == clips):
                    console.print(f"log-mels of {part}: {n + 1} of {clips} clips", highlight=False)

    def _array(self, path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
        """A memory-mapped array, created if it is missing, with its space on the disk."""
        if not path.exists():
            draft = self.files.unfinished(path)
            try:
                create_array(draft, shape, dtype)
                replace_file(draft, path)
            except OSError as error:
                raise SepsceneError(
                    f"{path} cannot be created ({error.strerror}): free disk space, or use another --storage"
                ) from None
        return open_memmap(path, "r+")


def prepare_stores(rows: list[Experiment], storage: Path, console: Console) -> tuple[LogMelStore, LogMelStore]:
    """The log-mels that rows of a study need: of the training clips with their channels, and of the test clips.

    Missing ones are computed. Other processes that need the same data wait until it is complete.

    Raises:
        SepsceneError: when a clip cannot be read, or a separator is damaged.
    """
    base = rows[0]
    backgrounds = 1 + any(row.views.background == "exchanged" for row in rows)
    shared = StudyData.of(storage)
    names = [name for row in rows if row.views.separates for name in row.views.combination]
    processors = {name: str(base.separator.checkpoints[name]) for name in names}
    shared.path.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(shared.lock):
        train, test = _manifests(base, shared, backgrounds, console)
        train_store = LogMelStore(shared.logmels, base, train)
        test_store = LogMelStore(shared.logmels, base, test)
        train_store.fill(processors, backgrounds, console)
        test_store.fill({}, console=console)
    return train_store, test_store


def describe_data(base: Experiment) -> dict[str, str]:
    """The description of the data for the report."""
    data = base.data
    if not data.is_generated:
        return {"data set": data.description}
    scenes = profile_of_length(base.audio.clip_seconds, data.scenes_profile)
    return {
        "data set": f"{data.description} ({data.scenes_profile})",
        "training clips": str(data.scenes_train),
        "test clips": str(data.scenes_test),
        "pairs that share an event": _shared_events(scenes, base.views),
    }


@cache
def _shared_events(config: SceneConfig, views: Views) -> str:
    scenes = [generate_scene(0, index, config).sources_ST for index in range(EXAMPLE_SCENES)]
    return describe_shared_events(scenes, views, config.sample_rate)


def _manifests(base: Experiment, shared: StudyData, backgrounds: int, console: Console) -> tuple[Manifest, Manifest]:
    data = base.data
    if not data.is_generated:
        manifest = read_manifest(data.format, str(data.root))
        return manifest.select(*data.train), manifest.select(*data.test)
    config = profile_of_length(base.audio.clip_seconds, data.scenes_profile)
    root = shared.scenes(data.scenes_profile, config.clip_seconds, data.scenes_train, data.scenes_test)
    for split, count, versions in (("train", data.scenes_train, backgrounds), ("test", data.scenes_test, 1)):
        marks = [shared.scenes_done(root, split, version) for version in range(1, versions + 1)]
        if not marks[-1].exists():
            console.print(f"generating {count} scenes for {split}")
            write_scenes(root, count, 0, split, config, False, versions)
            for mark in marks:
                mark.touch()
    manifest = read_manifest("scenes", str(root))
    return manifest.select("train"), manifest.select("test")
