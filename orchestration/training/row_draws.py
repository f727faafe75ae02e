"""The head of the stream: positions in what remains become rows with their clip and all their draws.

Its imports are light on purpose: Ray starts a process of its own for it, which should not have to load torch.

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
    """Turns positions in what remains into rows with their clip and all their draws."""

    def __init__(
        self, clips: pa.Table, schedule: Schedule, ledger: Ledger, views: Views, streams: Sequence[Stream] = ()
    ) -> None:
        """`streams`: of the augmentations (`streams_of`); custom ones are looked up here, where a run starts."""
        # Every task of Ray gets a copy of this object: Arrow's is a view of shared memory, two million strings are not.
        self.uri = clips["uri"].combine_chunks()
        self.offset_seconds = clips["offset_seconds"].to_numpy()
        self.schedule = schedule
        self.remaining = ledger.remaining()
        self.views = views
        self.streams = tuple(streams)

    def batches(self, rows: int) -> int:
        """Number of batches of `rows` rows in what remains; the last one is filled up."""
        return -(-sum(end - start for start, end in self.remaining) // rows)

    def __call__(self, columns: Columns) -> Columns:
        """Columns of draws for the positions in column `id`; fillers beyond the end have row −1."""
        row_N = nth_rows(self.remaining, columns["id"], beyond=FILLER)
        draws = self.views.draw(self.schedule, np.maximum(row_N, 0), self.streams)
        return {**draws, "row": row_N, **self._where(draws["clip"])}

    def _where(self, clip_N: np.ndarray) -> Columns:
        """The URIs of clips and where in their files they begin."""
        uri_N = self.uri.take(pa.array(clip_N)).to_numpy(zero_copy_only=False)
        return {"uri": uri_N, "offset_seconds": self.offset_seconds[clip_N]}


class PrefillRows(DrawRows):
    """Every clip with every processor once, instead of the draws' choices."""

    def __call__(self, columns: Columns) -> Columns:
        """Columns as of `DrawRows`, with clip and processor counted through."""
        clip_N, processor_N = np.divmod(columns["id"], len(self.views.combination))
        draws = self.views.draw(self.schedule, np.minimum(columns["id"], self.schedule.rows - 1), self.streams)
        chosen = {"row": columns["id"], "clip": clip_N, "processor": processor_N}
        return {**draws, **chosen, **self._where(clip_N)}
