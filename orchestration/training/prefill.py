"""Filling the SeparatedStore before any training, and making sure: every wanted entry is looked for at the end."""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sepscene.augment.separation.blocks import StoredViews
from sepscene.augment.separation.channel_scores import ChannelScores
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.models.card import read_card
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.precision import separation_precision
from sepscene.orchestration.runtime.ray_compat import blocks_of
from sepscene.orchestration.training.stream import prefill_stream, service_settings
from sepscene.orchestration.training.throughput import STORE_COUNTS, counts_of_block
from sepscene.tasks.datasets.readers import Manifest

logger = logging.getLogger("sepscene")

PATIENCE_SECONDS = 30.0
"""The last shards of the actors may appear so long after the last row."""
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Filled:
    """How a filling has ended.

    Attributes:
        wanted: separated clips that were asked for: clips times processors.
        unusable: of them, those of clips that can't be used; training will put these in quarantine.
        missing: of them, those that are not in the store although their clip can be used.
        counts: rows by `throughput.STORE_COUNTS`; empty where an earlier filling had come to its end.
    """

    wanted: int
    unusable: int
    missing: int
    counts: Mapping[str, int]

    @property
    def present(self) -> int:
        """Separated clips that are in the store."""
        return self.wanted - self.unusable - self.missing


class _Wanted:
    """What must be in the store in the end, as far as the readers have seen the clips.

    Separated clips are counted through as `PrefillRows` does: all processors of the first clip, then the next.
    """

    def __init__(self, stored: StoredViews, train: Manifest) -> None:
        self.stored = stored
        self.offset_N = train.clips["offset_seconds"].to_numpy()
        self.processors = len(stored.digests)
        self.content: dict[int, str] = {}
        self.unusable_N = np.zeros(len(train) * self.processors, bool)

    def note(self, batch: Mapping[str, np.ndarray], clip_N: np.ndarray) -> None:
        """Take in a block of the stream, whose clips are at these places of the whole manifest."""
        self.unusable_N[clip_N * self.processors + batch["processor"]] = batch["fault"] != ""
        for n, clip in enumerate(clip_N.tolist()):
            if batch["fault"][n]:
                logger.warning("%s: %s", batch["uri"][n], batch["fault"][n])
            else:
                self.content[clip] = str(batch["content"][n])

    def missing(self) -> np.ndarray:
        """Numbers of those that the store lacks although their clip can be used; waits for the actors' last shards."""
        left_N = np.flatnonzero(~self.unusable_N)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.stored.store.refresh()
            left_N = left_N[[not self._is_there(number) for number in left_N.tolist()]]
            if not len(left_N) or time.monotonic() >= deadline:
                return left_N
            time.sleep(_LOOK_SECONDS)

    def _is_there(self, number: int) -> bool:
        clip, processor = divmod(number, self.processors)
        columns = {
            "content": np.array([self.content.get(clip, "")], object),
            "offset_seconds": self.offset_N[clip : clip + 1],
            "processor": np.array([processor]),
        }
        return all(key in self.stored.store for key in self.stored.keys(columns, 0))


def fill(
    experiment: Experiment,
    train: Manifest,
    ladder: Mapping[str, str],
    store: SeparatedStore,
    advance: Callable[[int], None],
) -> Filled:
    """Separate every clip with every processor of the combination into the store; again what gets lost on the way.

    Args:
        ladder: processor name -> folder.
        advance: called with how many rows are done.
    """
    wanted = _Wanted(StoredViews(service_settings(experiment, ladder), store), train)
    counts = Counter(dict.fromkeys(STORE_COUNTS, 0))
    total = len(wanted.unusable_N)
    done = 0
    part = train
    clip_N = np.arange(len(train))
    while True:
        for batch in blocks_of(prefill_stream(experiment, part, ladder, store)):
            wanted.note(batch, clip_N[batch["clip"]])
            counts.update(counts_of_block(batch))
            done += len(batch["row"])
            advance(min(done, total))
        missing_N = wanted.missing()
        if not len(missing_N) or part is not train:
            return Filled(total, int(wanted.unusable_N.sum()), len(missing_N), counts)
        logger.warning("%d of %d separated clips are not in the store: once more", len(missing_N), total)
        clip_N = np.unique(missing_N // wanted.processors)
        part = replace(train, clips=train.clips.take(clip_N))


def name_of_filling(experiment: Experiment, train: Manifest, ladder: Mapping[str, str]) -> str:
    """A name for these clips, separated by the experiment's processors as its audio and its precision say."""
    digests = sorted(read_card(ladder[name]).digest for name in experiment.views.combination)
    what: list[Any] = [train.digest(), digests, experiment.audio.model_dump()]
    precision = separation_precision(experiment)
    if precision != "float32":  # which goes without saying, as in the store's keys
        what.append(precision)
    scores = ChannelScores.of(experiment.views)
    if scores is not None:
        what.append(scores.digest)
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
