"""The log-mels of every clip, and of every separated channel of it, as float16 on disk.

Separation and front-end are done once for all trials. Crops are then taken in the log-mel domain, at whole frames: a
view costs a copy. A store that was cut while it was made goes on with the first clip that is missing.

Shapes: N clips, S channels, T samples, L frames of a clip, F bands.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from sepscene.augment.audio import read_clip
from sepscene.augment.separation.service import open_separator
from sepscene.augment.synthetic.scenes import background_path
from sepscene.augment.views import from_pcm, levels_db, to_pcm
from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.frontend import LogMel
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.files import read_typed, write_whole
from sepscene.tasks.datasets.readers import Manifest
from sepscene.tasks.evaluation.clip_features import ClipFeatures, clip_features

NOTE_EVERY = 32
"""Clips between two notes of how far a part of the store is: this many are made again after a cut."""

Progress = Callable[[str, int, int], None]
"""Part, clips done, clips in all."""


class LogMelStore:
    """Log-mels of one manifest under one front-end: parts (N, S, L, F), one of mixtures and one of each processor."""

    def __init__(self, root: Path, experiment: Experiment, manifest: Manifest) -> None:
        self.experiment = experiment
        self.manifest = manifest
        self.front_end = LogMel(experiment.front_end.changed({"level": "kept"}))  # see `LogMel.level_patches`
        front_end = experiment.front_end.model_dump(exclude={"level"})
        what = [manifest.digest(), experiment.audio.model_dump(), front_end]
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / name
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def frames(self) -> int:
        """Frames L of a clip."""
        return self.experiment.front_end.frames(self.experiment.audio.samples)

    def mixtures(self, background: int = 0) -> np.ndarray:
        """Log-mels of the clips, (N, L, F); of their versions with another background."""
        return self._open(f"mixture-{background}")[:, 0]

    @cached_property
    def features(self) -> ClipFeatures:
        """Background and level of the clips."""
        return clip_features(self.mixtures())

    def channels(self, processor: str, background: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Log-mels (N, S, L, F) and levels in dBFS (N, S) of a processor's channels.

        Args:
            processor: folder of the separator.
            background: number of the background.
        """
        part = self._part(processor, background)
        return self._open(part), np.load(self.folder / f"{part}.levels.npy")

    def fill(self, processors: dict[str, str], backgrounds: int = 1, progress: Progress | None = None) -> None:
        """Make what is missing: mixtures, and the channels of processors (name -> folder), for each background.

        Raises:
            SepsceneError: when a clip cannot be read, or a separator is damaged.
        """
        for background in range(backgrounds):
            self._fill(f"mixture-{background}", None, 1, background, progress)
            for name, folder in processors.items():
                separator = open_separator(name, folder, self.experiment.audio)
                part = self._part(folder, background)
                channels = int(separator.sources)  # type: ignore[arg-type]
                self._fill(part, separator, channels, background, progress)

    def _part(self, folder: str, background: int) -> str:
        return f"channels-{read_card(folder).digest[:16]}-{background}"

    def _done(self, part: str) -> int:
        path = self.folder / f"{part}.done"
        return read_typed(path, int) if path.exists() else 0

    def _open(self, part: str) -> np.ndarray:
        if self._done(part) < len(self.manifest):
            raise SepsceneError(f"{self.folder / part} is not finished: fill the store of log-mels first")
        return np.load(self.folder / f"{part}.npy", mmap_mode="r")

    def _fill(
        self, part: str, separator: torch.nn.Module | None, channels: int, background: int, progress: Progress | None
    ) -> None:
        done = self._done(part)
        clips = len(self.manifest)
        if done == clips:
            return
        shape = (clips, channels, self.frames, self.experiment.front_end.mel_bands)
        logmel_NSLF = self._array(f"{part}.npy", shape, np.float16)
        levels_NS = self._array(f"{part}.levels.npy", shape[:2], np.float32)
        uris, offsets = (self.manifest.clips[name].to_pylist() for name in ("uri", "offset_seconds"))
        for n in range(done, clips):
            uri = str(background_path(uris[n], background)) if background else uris[n]
            pcm_ST = to_pcm(read_clip(uri, self.experiment.audio, offsets[n]))[None]
            with torch.inference_mode():
                if separator is not None:
                    pcm_ST = to_pcm(separator(torch.from_numpy(from_pcm(pcm_ST)))[0].float().numpy())
                logmel_NSLF[n] = self.front_end(torch.from_numpy(from_pcm(pcm_ST))).numpy()
            levels_NS[n] = levels_db(pcm_ST)
            if (n + 1) % NOTE_EVERY == 0 or n + 1 == clips:
                logmel_NSLF.flush()
                levels_NS.flush()
                write_whole(self.folder / f"{part}.done", str(n + 1))
                if progress is not None:
                    progress(part, n + 1, clips)

    def _array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.memmap:
        path = self.folder / name
        return open_memmap(path, "r+") if path.exists() else open_memmap(path, "w+", dtype, shape)
