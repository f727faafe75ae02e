"""Custom scores of a clip's channels (`views.channel`), computed or learned, as an alternative to their levels.

The scores are computed once per clip and separator, by the process that separates the clip. The SeparatedStore keeps
them in a separate entry, so that a stored clip is not scored again.

Shapes: S channels, T samples.
"""

import hashlib
import json
from functools import cached_property
from typing import Any

import numpy as np

from sepscene.augment.views import Views, from_pcm
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomCode, identity, instantiate, reporting_errors


class ChannelScores:
    """The channel scores of a configuration. The custom code is imported on first use.

    The custom code is a function, a callable object or a torch module. Its arguments are `mixture_T` and
    `separated_ST`, torch tensors on the CPU, float32 of full scale 1. It returns (S,) finite numbers as a tensor or an
    array: the unnormalised log-probability of each channel. It must be deterministic.
    """

    def __init__(self, choice: CustomCode) -> None:
        self.choice = choice

    @classmethod
    def of(cls, views: Views) -> "ChannelScores | None":
        """The scores of `views.channel`, or None if it is a rule based on levels."""
        return cls(views.channel) if isinstance(views.channel, CustomCode) else None

    @cached_property
    def _function(self) -> Any:
        return instantiate(self.choice, "channel score")

    @cached_property
    def digest(self) -> str:
        """Digest of the code's import path, version and fields, and of the weights of a torch module."""
        from torch import nn

        from sepscene.models.weights import serialised

        content = json.dumps(identity(self.choice), sort_keys=True).encode()
        weights = serialised(self._function) if isinstance(self._function, nn.Module) else b""
        return hashlib.sha256(content + b"\0" + weights).hexdigest()

    def processor(self, separator_digest: str) -> str:
        """Value of `StoreKey.processor` for the scores of this separator's channels."""
        return "scores-" + hashlib.sha256(f"{separator_digest} {self.digest}".encode()).hexdigest()

    def __call__(self, mixture_T: np.ndarray, pcm_ST: np.ndarray) -> np.ndarray:
        """Score the channels of a clip from its 16-bit sound, float32 (S,); the scores can be non-finite.

        Raises:
            SepsceneError: the code does not return (S,) numbers.
        """
        import torch

        with torch.inference_mode():
            found = self._function(torch.from_numpy(from_pcm(mixture_T)), torch.from_numpy(from_pcm(pcm_ST)))
        score_S = np.asarray(found, np.float32)
        if score_S.shape != pcm_ST.shape[:1]:
            raise SepsceneError(
                f"the channel score {self.choice.use} returns shape {score_S.shape} for {len(pcm_ST)} channels; "
                "it must return one number per channel"
            )
        return score_S

    def try_out(self, channels: int, samples: int) -> None:
        """Test the code on noise before a run uses it.

        Raises:
            SepsceneError: the code fails, its scores are not finite, or they are not deterministic.
        """
        noise = np.random.default_rng(0).integers(-3000, 3000, (1 + channels, samples), np.int16)
        label = f"the channel score {self.choice}"
        with reporting_errors(label, "noise"):
            first_S = self(noise[0], noise[1:])
            again_S = self(noise[0], noise[1:])
        if not (np.isfinite(first_S).all() and np.array_equal(first_S, again_S)):
            raise SepsceneError(
                f"{label} returns {first_S.tolist()}, then {again_S.tolist()}, for the same clip: its scores must be "
                "finite and deterministic"
            )
