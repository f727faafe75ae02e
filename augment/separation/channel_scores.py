"""Scores of a clip's channels by custom code (`views.channel`): given or learned, instead of their loudness.

The code runs where clips are separated, once for each clip and separator. The SeparatedStore keeps the scores beside
the channels, in an entry of their own, so that a clip that is there already is not scored again.

Shapes: S channels, T samples.
"""

import hashlib
import json
from functools import cached_property
from typing import Any

import numpy as np

from sepscene.augment.views import Views, from_pcm
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomCode, identity, make, tried


class ChannelScores:
    """The scores of one configuration; its code is imported when it is first needed.

    That code is a function, an object that can be called, or a torch module. It gets `mixture_T` and `separated_ST`,
    torch tensors on the CPU, float32 of full scale 1, and returns (S,) finite numbers, a tensor or an array: logarithms
    of how probable each channel is, up to a constant. The same clip has the same scores at any time: it draws no random
    numbers.
    """

    def __init__(self, choice: CustomCode) -> None:
        self.choice = choice

    @classmethod
    def of(cls, views: Views) -> "ChannelScores | None":
        """Those of `views.channel`; None where it is a rule that looks at levels alone."""
        return cls(views.channel) if isinstance(views.channel, CustomCode) else None

    @cached_property
    def _called(self) -> Any:
        return make(self.choice, "channel score")

    @cached_property
    def digest(self) -> str:
        """Names the scores: by code, version and fields, and the weights where it is a torch module."""
        from torch import nn

        from sepscene.models.weights import packed

        content = json.dumps(identity(self.choice), sort_keys=True).encode()
        weights = packed(self._called) if isinstance(self._called, nn.Module) else b""
        return hashlib.sha256(content + b"\0" + weights).hexdigest()

    def processor(self, separator_digest: str) -> str:
        """In the place of a separator's digest in the store's keys: the scores of what this separator gives."""
        return "scores-" + hashlib.sha256(f"{separator_digest} {self.digest}".encode()).hexdigest()

    def __call__(self, mixture_T: np.ndarray, pcm_ST: np.ndarray) -> np.ndarray:
        """Scores of a clip's channels, float32 (S,), from its 16-bit sound; NaN where they are not finite.

        Raises:
            SepsceneError: the code gives something else than (S,).
        """
        import torch

        with torch.inference_mode():
            found = self._called(torch.from_numpy(from_pcm(mixture_T)), torch.from_numpy(from_pcm(pcm_ST)))
        score_S = np.asarray(found, np.float32)
        if score_S.shape != pcm_ST.shape[:1]:
            raise SepsceneError(
                f"the channel score {self.choice.use} gives {score_S.shape} for {len(pcm_ST)} channels, not one each"
            )
        return score_S

    def try_out(self, channels: int, samples: int) -> None:
        """Score noise, before a run is built on it.

        Raises:
            SepsceneError: it fails, its scores are not finite, or they depend on chance.
        """
        noise = np.random.default_rng(0).integers(-3000, 3000, (1 + channels, samples), np.int16)
        said = f"the channel score {self.choice}"
        with tried(said, "noise"):
            first_S, again_S = (self(noise[0], noise[1:]) for _ in range(2))
        if not (np.isfinite(first_S).all() and np.array_equal(first_S, again_S)):
            raise SepsceneError(
                f"{said} gives {first_S.tolist()}, then {again_S.tolist()}, for the same clip: scores must be finite "
                "and the same each time"
            )
