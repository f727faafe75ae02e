"""Detect shortcuts in a representation: how much of h the background and the level of a clip explain.

Two crops of one clip share its background and its level, whatever sounds it contains. An encoder can recognise pairs
from these, which lowers its loss without learning anything about sound events.

Shapes: N clips, L frames, F mel bands, D embedding, X features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from sepscene.tasks.evaluation.metrics import Floats
from sepscene.tasks.losses.diagnostics import effective_rank

WARNING_SHARE = 0.35
"""The report warns if a larger share of h is explained [ours]; untrained encoders of this kind have 0.15 to 0.3."""
QUIET_PERCENTILE = 10.0
"""The level that a clip's frames exceed for nine tenths of the time counts as its background."""


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """What two crops of a clip share.

    Attributes:
        background_NF: 10th percentile of the log-mel in each band: the spectrum of what is always present.
        level_N: the mean log-mel.
    """

    background_NF: Floats
    level_N: Floats

    def of(self, rows: Sequence[int] | np.ndarray | slice) -> "ClipFeatures":
        """The features of some of the clips."""
        return ClipFeatures(self.background_NF[rows], self.level_N[rows])


def clip_features(logmels: Sequence[Floats] | Floats) -> ClipFeatures:
    """The features of clips from their log-mels, (L, F) each; lengths may differ."""
    background = [np.percentile(logmel_LF.astype(np.float32), QUIET_PERCENTILE, axis=0) for logmel_LF in logmels]
    return ClipFeatures(np.array(background), np.array([logmel_LF.mean(dtype=np.float64) for logmel_LF in logmels]))


@dataclass(frozen=True)
class Shortcuts:
    """Shares of the variance of h over test clips, by ridge regression on the training clips: R² from 0 to 1.

    Attributes:
        background: explained by the spectrum of each clip's quietest frames.
        level: explained by each clip's mean log-mel, a single number.
        rank: effective rank of h, exp of the entropy of its spectrum (Roy & Vetterli 2007).
    """

    background: float
    level: float
    rank: float

    @property
    def warning(self) -> str:
        """A warning for the report if a shortcut is being learned; otherwise empty."""
        shares = {"background": self.background, "level": self.level}
        found = [name for name, share in shares.items() if share > WARNING_SHARE]
        if not found:
            return ""
        verb = "explains" if len(found) == 1 else "each explain"
        return (
            f"The {' and the '.join(found)} of a clip {verb} over {WARNING_SHARE:.0%} of h: the encoder "
            "distinguishes clips by these rather than by their sound events. Try crops closer to "
            "each other (views.tp_delta_seconds), a smaller objective.alpha, or data in "
            "which background and level vary within a pair."
        )


def find_shortcuts(train: ClipFeatures, train_h_ND: Floats, test: ClipFeatures, test_h_ND: Floats) -> Shortcuts:
    """Regress h on the clips' features."""
    return Shortcuts(
        background=explained_share(train.background_NF, train_h_ND, test.background_NF, test_h_ND),
        level=explained_share(train.level_N[:, None], train_h_ND, test.level_N[:, None], test_h_ND),
        rank=effective_rank(torch.from_numpy(test_h_ND)),
    )


def explained_share(train_X: Floats, train_h_ND: Floats, test_X: Floats, test_h_ND: Floats) -> float:
    """R² of h predicted from features, over all dimensions of h together; 0 if the features predict nothing."""
    scaler = StandardScaler().fit(train_X)
    ridge = RidgeCV(alphas=np.logspace(-2, 4, 7)).fit(scaler.transform(train_X), train_h_ND.astype(np.float64))
    rest = np.square(test_h_ND - ridge.predict(scaler.transform(test_X)).reshape(test_h_ND.shape)).sum()
    total = np.square(test_h_ND - train_h_ND.mean(axis=0)).sum()
    return float(max(0.0, 1 - rest / max(total, 1e-12)))
