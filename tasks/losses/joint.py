"""The joint objective L = L_sim + alpha * L_coin as one module that DistributedDataParallel can wrap.

View 1 is the mixture (h_m), view 2 the channel (h_c). The encoder sees all views of a worker in one batch, so
that both views of a pair share one set of batch statistics.

DistributedDataParallel AVERAGES gradients over workers, while the loss is a SUM of the workers' shares over
the global batch. The returned loss is therefore the local share times the number of workers: the average of
its gradients is the gradient of the global loss, exactly. All collective calls and all parameters are used
inside `forward`, in the same order on every worker, also on one without rows, so that no hook and no
collective call waits for a worker that never comes.

Legend: n local pairs, N global pairs, F mels, L frames, D features of h, Z features of z.
"""

from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.tasks.distributed.gather import gather_counts, gather_rows, rank, sum_over_workers, world_size
from sepscene.tasks.losses.coincidence import coincidence_loss
from sepscene.tasks.losses.nt_xent import nt_xent
from sepscene.tasks.losses.triplet import triplet_loss

TEMPERATURE_RANGE = (0.01, 1.0)  # bounds of a learned tau: below it logits explode, above it they go flat


@dataclass(frozen=True)
class JointLoss:
    """What a step of the objective gives.

    Attributes:
        loss: scalar to call backward on: the local share of the global loss times the number of workers.
        parts: detached scalars of the GLOBAL batch, equal on all workers: "loss", "similarity", "coincidence"
            (with a coincidence head), "temperature", "pairs" (N), and "coincidence_pairs" where that task has its
            own.
        h_1_nD, h_2_nD: representations of the local pairs, detached.
        z_1_NZ, z_2_NZ: projections of the global pairs, detached.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    h_1_nD: Tensor
    h_2_nD: Tensor
    z_1_NZ: Tensor
    z_2_NZ: Tensor


class JointObjective(nn.Module):
    """Encoder trunk, heads and losses.

    Args:
        trunk: logmel_BLF -> h_BD, e.g. `models.encoders.cnn14.Cnn14`.
        similarity: h_BD -> z_BZ.
        coincidence: the coincidence head; none trains on similarity alone.
        temperature: tau of NT-Xent [open; 0.2 is ours], or its start when it is learned.
        learn_temperature: makes log tau a parameter, clamped to `TEMPERATURE_RANGE`; beyond it gets no
            gradient.
        similarity_loss: "nt-xent", or "triplet" for the baseline of Jansen et al. 2018.
        margin: of the triplet loss [open; ours].

    Raises:
        ValueError: when a temperature is to be learned that the triplet loss does not have.
    """

    def __init__(
        self,
        trunk: nn.Module,
        similarity: nn.Module,
        coincidence: CoincidenceHead | None = None,
        *,
        temperature: float = 0.2,
        learn_temperature: bool = False,
        similarity_loss: Literal["nt-xent", "triplet"] = "nt-xent",
        margin: float = 0.1,
    ) -> None:
        super().__init__()
        if learn_temperature and similarity_loss == "triplet":
            raise ValueError("the triplet loss has no temperature: set learn_temperature to false")
        self.trunk = trunk
        self.similarity = similarity
        self.coincidence = coincidence
        self.similarity_loss = similarity_loss
        self.margin = margin
        self.log_temperature = nn.Parameter(torch.tensor(log(temperature)), requires_grad=learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """tau now."""
        if not self.log_temperature.requires_grad:
            return self.log_temperature.exp()
        low, high = TEMPERATURE_RANGE
        return self.log_temperature.clamp(log(low), log(high)).exp()

    def forward(
        self,
        logmel_1_nLF: Tensor,
        logmel_2_nLF: Tensor,
        own_1_kLF: Tensor | None = None,
        own_2_kLF: Tensor | None = None,
        *,
        alpha: float = 1.0,
    ) -> JointLoss:
        """The loss of this worker's pairs against the global batch. Collective: all workers call it each step.

        Args:
            logmel_1_nLF, logmel_2_nLF: both views of the local pairs; n may differ between workers, and be 0.
            own_1_kLF, own_2_kLF: pairs of coincidence prediction's own draws; none means that both tasks
                share one pair. Given, they add their part to the encoder's work.
            alpha: weight of coincidence prediction at this step (the caller warms it up).

        Raises:
            ValueError: when the views of a pair differ in number.
        """
        views = [view for view in (logmel_1_nLF, logmel_2_nLF, own_1_kLF, own_2_kLF) if view is not None]
        return self.loss(*self.encode(*views), alpha=alpha)

    def encode(self, *views_BLF: Tensor) -> tuple[Tensor, ...]:
        """h_BD of each view, all computed as one batch."""
        h_BD = self.trunk(torch.cat(views_BLF))
        h_BD = h_BD if h_BD.dtype == torch.float64 else h_BD.float()
        return h_BD.split([len(view) for view in views_BLF])

    def loss(
        self,
        h_1_nD: Tensor,
        h_2_nD: Tensor,
        own_1_kD: Tensor | None = None,
        own_2_kD: Tensor | None = None,
        *,
        alpha: float = 1.0,
    ) -> JointLoss:
        """The losses from representations; arguments and errors as for `forward`."""
        _check_pairs(h_1_nD, h_2_nD, own_1_kD, own_2_kD)
        counts = gather_counts(len(h_1_nD), h_1_nD.device)
        start, total = sum(counts[: rank()]), sum(counts)
        z_1_nZ, z_2_nZ = self.similarity(torch.cat([h_1_nD, h_2_nD])).to(h_1_nD.dtype).chunk(2)
        # What both losses want of the other workers travels together.
        wanted = [z_1_nZ, z_2_nZ] + ([h_2_nD] if self.coincidence is not None and own_2_kD is None else [])
        z_1_NZ, z_2_NZ, *h_2_ND = gather_rows(torch.cat(wanted, 1), counts).split([part.shape[1] for part in wanted], 1)
        share = self._similarity_share(z_1_nZ, z_2_nZ, z_1_NZ, z_2_NZ, start)
        metrics, own_counts = {"similarity": share.detach()}, list[int]()
        if self.coincidence is not None:
            if own_1_kD is None or own_2_kD is None:
                coincidence = coincidence_loss(self.coincidence, h_1_nD, h_2_nD, h_2_ND[0], start)
            else:
                own_counts = gather_counts(len(own_1_kD), own_1_kD.device)
                own_2_KD, own_start = gather_rows(own_2_kD, own_counts), sum(own_counts[: rank()])
                coincidence = coincidence_loss(self.coincidence, own_1_kD, own_2_kD, own_2_KD, own_start)
            metrics["coincidence"] = coincidence.detach()
            share = share + alpha * coincidence
        summed = sum_over_workers(torch.stack([share.detach(), *metrics.values()]))
        parts = dict(zip(["loss", *metrics], summed, strict=True))
        parts |= {"temperature": self.temperature.detach(), "pairs": summed.new_tensor(float(total))}
        if own_counts:
            parts["coincidence_pairs"] = summed.new_tensor(float(sum(own_counts)))
        seen = (tensor.detach() for tensor in (h_1_nD, h_2_nD, z_1_NZ, z_2_NZ))
        return JointLoss(world_size() * share, parts, *seen)

    def _similarity_share(self, z_1: Tensor, z_2: Tensor, all_1: Tensor, all_2: Tensor, start: int) -> Tensor:
        if self.similarity_loss == "triplet":
            return triplet_loss(z_1, z_2, all_2, start, self.margin)
        return nt_xent(z_1, z_2, all_1, all_2, start, self.temperature)


def _check_pairs(first: Tensor, second: Tensor, own_first: Tensor | None, own_second: Tensor | None) -> None:
    sizes = [None if view is None else len(view) for view in (first, second, own_first, own_second)]
    if sizes[0] != sizes[1] or sizes[2] != sizes[3]:
        raise ValueError(
            f"pairs need as many first as second views, got {sizes} (first, second, own first, own second)"
        )
