"""Fills the SeparatedStore before training, and checks at the end that every expected entry is in it.

Shapes: N clips.
"""

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

STAGE = "prefill"

SHARDS_SECONDS = 30.0
"""How long the last shards of the actors can take to appear after the last row."""
_RETRY_SECONDS = 1.0  # interval at which the store is searched for them


@dataclass(frozen=True)
class PrefillResult:
    """The result of a prefill.

    Attributes:
        expected: separated clips that there should be: clips times processors.
        unusable: those of clips that cannot be used; training will put these in quarantine.
        missing: those that are not in the store although their clip can be used.
        counts: rows by `throughput.STORE_COUNTS`; empty if an earlier prefill was complete.
    """

    expected: int
    unusable: int
    missing: int
    counts: Mapping[str, int]

    @property
    def present(self) -> int:
        """Separated clips that are in the store."""
        return self.expected - self.unusable - self.missing


class _WantedEntries:
    """The entries that must be in the store at the end, for the clips that the readers have reported so far.

    Separated clips are numbered as in `PrefillRows`: all processors of the first clip, then those of the next.
    """

    def __init__(self, stored: StoredViews, train: Manifest) -> None:
        self.stored = stored
        self.offset_N = train.clips["offset_seconds"].to_numpy()
        self.processors = len(stored.digests)
        self.content: dict[int, str] = {}
        self.unusable_N = np.zeros(len(train) * self.processors, bool)

    def add(self, batch: Mapping[str, np.ndarray], clip_N: np.ndarray) -> None:
        """Add a block of the stream; `clip_N` are the positions of its clips in the whole manifest."""
        self.unusable_N[clip_N * self.processors + batch["processor"]] = batch["fault"] != ""
        for n, clip in enumerate(clip_N.tolist()):
            if batch["fault"][n]:
                logger.warning("%s: %s", batch["uri"][n], batch["fault"][n])
            else:
                self.content[clip] = str(batch["content"][n])

    def missing(self) -> np.ndarray:
        """Numbers of usable separated clips that are not in the store; waits for the last shards of the actors."""
        missing_N = np.flatnonzero(~self.unusable_N)
        deadline = time.monotonic() + SHARDS_SECONDS
        while True:
            self.stored.store.refresh()
            missing_N = missing_N[[not self._is_stored(number) for number in missing_N.tolist()]]
            if not len(missing_N) or time.monotonic() >= deadline:
                return missing_N
            time.sleep(_RETRY_SECONDS)

    def _is_stored(self, number: int) -> bool:
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
) -> PrefillResult:
    """Separate every clip with every processor of the combination into the store; lost entries are tried once more.

    Args:
        ladder: processor name -> folder.
        advance: called with the number of rows that are done.
    """
    wanted = _WantedEntries(StoredViews(service_settings(experiment, ladder), store), train)
    counts = Counter(dict.fromkeys(STORE_COUNTS, 0))
    total = len(wanted.unusable_N)
    done = 0
    part = train
    clip_N = np.arange(len(train))
    while True:
        for batch in blocks_of(prefill_stream(experiment, part, ladder, store)):
            wanted.add(batch, clip_N[batch["clip"]])
            counts.update(counts_of_block(batch))
            done += len(batch["row"])
            advance(min(done, total))
        missing_N = wanted.missing()
        if not len(missing_N) or part is not train:
            return PrefillResult(total, int(wanted.unusable_N.sum()), len(missing_N), counts)
        logger.warning("%d of %d separated clips are not in the store; they are separated again", len(missing_N), total)
        clip_N = np.unique(missing_N // wanted.processors)
        part = replace(train, clips=train.clips.take(clip_N))


def prefill_key(experiment: Experiment, train: Manifest, ladder: Mapping[str, str]) -> str:
    """A digest of everything that the entries depend on: clips, processors, audio format, precision, channel scores."""
    digests = sorted(read_card(ladder[name]).digest for name in experiment.views.combination)
    parts: list[Any] = [train.digest(), digests, experiment.audio.model_dump()]
    precision = separation_precision(experiment)
    if precision != "float32":  # the default is not part of the key, as in the store's keys
        parts.append(precision)
    scores = ChannelScores.of(experiment.views)
    if scores is not None:
        parts.append(scores.digest)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
