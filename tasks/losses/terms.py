"""The terms of an objective as modules: each computes this worker's share of a loss over the global batch.

A term is computed in three steps, so that a single collective call gathers the rows for all terms: `project` computes
from the local representations what the other workers need; the rows of all workers are gathered; `share` computes the
loss from the local and the gathered rows. Shares are summed over the workers. Gradients flow through the gathered rows
to the workers that hold them (`tasks.distributed.gather`), so they are exact.

Legend: n local pairs, N global pairs, D features of h, Z features of z.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from sepscene.models.config import SepsceneError
from sepscene.models.custom import settings_for
from sepscene.models.encoders.heads import CoincidenceHead, SimilarityHead
from sepscene.models.names import TERMS, resolve
from sepscene.tasks.losses.coincidence import coincidence_loss
from sepscene.tasks.losses.nt_xent import nt_xent
from sepscene.tasks.losses.settings import (
    CoincidenceSettings,
    NtXentSettings,
    TermSettings,
    TripletSettings,
    VicregSettings,
)
from sepscene.tasks.losses.triplet import triplet_loss
from sepscene.tasks.losses.vicreg import vicreg

TEMPERATURE_RANGE = (0.01, 1.0)  # bounds of a learned tau: below, logits become huge; above, they become nearly equal


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of the heads on top of h.

    Attributes:
        embedding_dim: size D of h.
        hidden: hidden units of a head.
        projection: size Z of z.
    """

    embedding_dim: int
    hidden: int = 512
    projection: int = 128


class Term(nn.Module):
    """A loss of pairs of representations. A custom term subclasses it and implements `share` and, if needed, `project`.

    Attributes:
        Config: a pydantic model of its settings; the term is built as `Class(config, sizes)`.
        reads_z: whether `project` returns z_1 and z_2, which the diagnostics then use.
    """

    Config: type[BaseModel]
    reads_z = False

    def project(self, h_1_nD: Tensor, h_2_nD: Tensor) -> Sequence[Tensor]:
        """What the other workers need of the local pairs: tensors of n rows; n can be 0.

        It runs under autocast, like the encoder; results in half precision are converted to float32.
        """
        return h_1_nD, h_2_nD

    def share(
        self, h_1_nD: Tensor, h_2_nD: Tensor, local: Sequence[Tensor], gathered: Sequence[Tensor], start: int
    ) -> Tensor:
        """This worker's share of the loss, a scalar: the shares of all workers sum to the loss.

        It runs without autocast, in float32 or float64. Every parameter must be used, even without local pairs;
        otherwise other workers would wait for its gradient.

        Args:
            h_1_nD, h_2_nD: both views of the local pairs.
            local: what `project` returned for them.
            gathered: the same from all workers, N rows.
            start: index of the first local pair among them.
        """
        raise NotImplementedError


class SimilarityTerm(Term):
    """Base class of the losses on z: it has the head that computes z."""

    reads_z = True

    def __init__(self, config: Any, sizes: HeadSizes) -> None:
        super().__init__()
        self.config = config
        self.head = SimilarityHead(sizes.embedding_dim, sizes.hidden, sizes.projection)

    def project(self, h_1_nD: Tensor, h_2_nD: Tensor) -> Sequence[Tensor]:
        """z_1 and z_2, in one pass."""
        return self.head(torch.cat([h_1_nD, h_2_nD])).chunk(2)


class NtXent(SimilarityTerm):
    """`tasks.losses.nt_xent`, with a fixed or a learned temperature."""

    Config = NtXentSettings

    def __init__(self, config: NtXentSettings, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        start = torch.tensor(log(config.temperature))
        self.log_temperature = nn.Parameter(start, requires_grad=config.learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """The current tau. A learned one is clamped to TEMPERATURE_RANGE; outside of it there is no gradient."""
        if not self.log_temperature.requires_grad:
            return self.log_temperature.exp()
        low, high = TEMPERATURE_RANGE
        return self.log_temperature.clamp(log(low), log(high)).exp()

    def share(
        self, h_1_nD: Tensor, h_2_nD: Tensor, local: Sequence[Tensor], gathered: Sequence[Tensor], start: int
    ) -> Tensor:
        return nt_xent(local[0], local[1], gathered[0], gathered[1], start, self.temperature)


class Triplet(SimilarityTerm):
    """`tasks.losses.triplet`."""

    Config = TripletSettings

    def share(
        self, h_1_nD: Tensor, h_2_nD: Tensor, local: Sequence[Tensor], gathered: Sequence[Tensor], start: int
    ) -> Tensor:
        return triplet_loss(local[0], local[1], gathered[1], start, self.config.margin)


class Vicreg(SimilarityTerm):
    """`tasks.losses.vicreg`."""

    Config = VicregSettings

    def share(
        self, h_1_nD: Tensor, h_2_nD: Tensor, local: Sequence[Tensor], gathered: Sequence[Tensor], start: int
    ) -> Tensor:
        return vicreg(local, gathered, self.config)


class Coincidence(Term):
    """`tasks.losses.coincidence`; only h of the channels is gathered."""

    Config = CoincidenceSettings

    def __init__(self, config: CoincidenceSettings, sizes: HeadSizes) -> None:
        super().__init__()
        self.head = CoincidenceHead(sizes.embedding_dim, sizes.hidden)

    def project(self, h_1_nD: Tensor, h_2_nD: Tensor) -> Sequence[Tensor]:
        """The second views."""
        return (h_2_nD,)

    def share(
        self, h_1_nD: Tensor, h_2_nD: Tensor, local: Sequence[Tensor], gathered: Sequence[Tensor], start: int
    ) -> Tensor:
        return coincidence_loss(self.head, h_1_nD, h_2_nD, gathered[0], start)


def build_term(name: str, settings: TermSettings, sizes: HeadSizes) -> Term:
    """Build a term with new weights from torch's global generator; `name` is its name in the objective, for messages.

    Raises:
        SepsceneError: a custom term cannot be imported, is not a `Term`, has no `Config`, or its settings are invalid.
    """
    use = settings.use  # type: ignore[attr-defined]
    found = resolve(use, TERMS, "loss term")
    if not (isinstance(found, type) and issubclass(found, Term)):
        raise SepsceneError(f"objective.terms.{name}: {use} is not a subclass of tasks.losses.terms.Term")
    return found(settings_for(found, settings, f"objective.terms.{name} ({use})"), sizes)
