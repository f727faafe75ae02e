"""What two crops of a clip share whatever sounds in it: the spectrum of its background, and its level.

Shapes: N clips, L frames, F mel bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sepscene.tasks.evaluation.metrics import Floats

QUIET_PERCENTILE = 10.0


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """Of some clips.

    Attributes:
        background_NF: in each band the log-mel that 10 % of the frames stay below: the spectrum of what never stops.
        level_N: the mean log-mel.
    """

    background_NF: Floats
    level_N: Floats

    def of(self, rows: Sequence[int] | np.ndarray | slice) -> "ClipFeatures":
        """The same for some of the clips."""
        return ClipFeatures(self.background_NF[rows], self.level_N[rows])


def clip_features(logmels: Sequence[Floats] | Floats) -> ClipFeatures:
    """The features of clips from their log-mels, (L, F) each; lengths may differ."""
    background = [np.percentile(logmel_LF.astype(np.float32), QUIET_PERCENTILE, axis=0) for logmel_LF in logmels]
    return ClipFeatures(np.stack(background), np.array([logmel_LF.mean(dtype=np.float64) for logmel_LF in logmels]))
