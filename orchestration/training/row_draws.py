"""The first step of the stream: computes rows with their clip and all their draws.

This module must not import torch: Ray starts separate processes for it, which would start more slowly.

Shapes: N rows.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from sepscene.augment.draws import FILLER, Schedule, Stream
from sepscene.augment.views import Views
from sepscene.orchestration.records.ledger import Ledger, nth_rows

Columns = dict[str, np.ndarray]


class DrawRows:
    """Turns positions among the remaining rows into rows with their clip and all their draws."""

    def __init__(
        self, clips: pa.Table, schedule: Schedule, ledger: Ledger, views: Views, streams: Sequence[Stream] = ()
    ) -> None:
        """Args: streams: random streams of the augmentations, see `streams_of`."""
        # Each Ray task gets a copy of this object. An Arrow column is then a view of shared memory; a list of two
        # million strings is not.
        self.uri = clips["uri"].combine_chunks()
        self.offset_seconds = clips["offset_seconds"].to_numpy()
        self.schedule = schedule
        self.remaining = ledger.remaining()
        self.views = views
        self.streams = tuple(streams)

    def batches(self, rows: int) -> int:
        """Number of batches with `rows` rows in what remains; the last one is padded."""
        return -(-sum(end - start for start, end in self.remaining) // rows)

    def __call__(self, columns: Columns) -> Columns:
        """Columns of draws for the positions in column `id`; positions beyond the end give fillers, of row −1."""
        row_N = nth_rows(self.remaining, columns["id"], beyond=FILLER)
        draws = self.views.draw(self.schedule, np.maximum(row_N, 0), self.streams)
        return {**draws, "row": row_N, **self._where(draws["clip"])}

    def _where(self, clip_N: np.ndarray) -> Columns:
        """The URIs of clips and their offsets in their files."""
        uri_N = self.uri.take(pa.array(clip_N)).to_numpy(zero_copy_only=False)
        return {"uri": uri_N, "offset_seconds": self.offset_seconds[clip_N]}


class PrefillRows(DrawRows):
    """Gives every clip with every processor once, instead of the drawn clips and processors."""

    def __call__(self, columns: Columns) -> Columns:
        """Columns as from `DrawRows`; position p is clip p // P with processor p % P, of P processors."""
        clip_N, processor_N = np.divmod(columns["id"], len(self.views.combination))
        draws = self.views.draw(self.schedule, np.minimum(columns["id"], self.schedule.rows - 1), self.streams)
        chosen = {"row": columns["id"], "clip": clip_N, "processor": processor_N}
        return {**draws, **chosen, **self._where(clip_N)}
