"""The joint objective, a weighted sum of terms, as one module that DistributedDataParallel can wrap.

View 1 is the mixture (h_m), view 2 the channel (h_c). The encoder sees all views of a worker in one batch, so
that both views of a pair share one set of batch statistics.

DistributedDataParallel AVERAGES gradients over workers, while the loss is a SUM of the workers' shares over
the global batch. The returned loss is therefore the local share times the number of workers: the average of
its gradients is the gradient of the global loss, exactly. All collective calls and all parameters are used
inside `forward`, in the same order on every worker, also on one without rows, so that no hook and no
collective call waits for a worker that never comes.

Legend: n local pairs, N global pairs, F mels, L frames, D features of h, Z features of z.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.tasks.distributed.gather import gather_counts, gather_rows, rank, sum_over_workers, world_size
from sepscene.tasks.losses.terms import Coincidence, NtXent, Term


@dataclass(frozen=True)
class JointLoss:
    """What a step of the objective gives.

    Attributes:
        loss: scalar to call backward on: the local share of the global loss times the number of workers.
        parts: detached scalars of the GLOBAL batch, equal on all workers: "loss", each term by its name, without its
            weight, "temperature" of NT-Xent, and "pairs" (N).
        h_1_nD, h_2_nD: representations of the local pairs, detached.
        z_1_NZ, z_2_NZ: projections of the global pairs by the first term on z, detached; empty where there is none.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    h_1_nD: Tensor
    h_2_nD: Tensor
    z_1_NZ: Tensor
    z_2_NZ: Tensor


class JointObjective(nn.Module):
    """Encoder trunk and terms.

    Args:
        trunk: a network of `models.encoders.network`.
        terms: by name, in the order in which they are added up.

    Raises:
        ValueError: without a term.
    """

    def __init__(self, trunk: nn.Module, terms: Mapping[str, Term]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("an objective needs at least one term")
        self.trunk = trunk
        self.terms = nn.ModuleDict(terms)

    @property
    def _terms(self) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if isinstance(term, Term)}

    @property
    def coincidence_head(self) -> CoincidenceHead | None:
        """The head of coincidence prediction, where that is a term."""
        return next((term.head for term in self._terms.values() if isinstance(term, Coincidence)), None)

    def forward(
        self,
        logmel_1_nLF: Tensor,
        logmel_2_nLF: Tensor,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> JointLoss:
        """The loss of this worker's pairs against the global batch. Collective: all workers call it each step.

        Args:
            logmel_1_nLF, logmel_2_nLF: both views of the local pairs; n may differ between workers, and be 0.
            weights: of the terms at this step, by name (the caller warms them up); 1 for those that are not named.

        Raises:
            ValueError: when the views of a pair differ in number.
        """
        return self.loss(*self.encode(logmel_1_nLF, logmel_2_nLF), weights=weights)

    def encode(self, *views_BLF: Tensor) -> tuple[Tensor, ...]:
        """h_BD of each view, all computed as one batch."""
        h_BD = _full(self.trunk(torch.cat(views_BLF)))
        return h_BD.split([len(view) for view in views_BLF])

    def loss(
        self,
        h_1_nD: Tensor,
        h_2_nD: Tensor,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> JointLoss:
        """The losses from representations; arguments and errors as for `forward`."""
        if len(h_1_nD) != len(h_2_nD):
            raise ValueError(f"pairs need as many first as second views, got {len(h_1_nD)} and {len(h_2_nD)}")
        counts = gather_counts(len(h_1_nD), h_1_nD.device)
        start = sum(counts[: rank()])
        local = {}
        for name, term in self._terms.items():
            local[name] = [_full(part) for part in term.project(h_1_nD, h_2_nD)]
        everyone = _gathered(local, counts)
        shares = {}
        with torch.autocast(h_1_nD.device.type, enabled=False):
            for name, term in self._terms.items():
                shares[name] = term.share(h_1_nD, h_2_nD, local[name], everyone[name], start)
        weighted = [(weights or {}).get(name, 1.0) * share for name, share in shares.items()]
        share = sum(weighted[1:], weighted[0])
        summed = sum_over_workers(torch.stack([share.detach(), *(each.detach() for each in shares.values())]))
        parts = dict(zip(["loss", *shares], summed, strict=True))
        for term in self._terms.values():
            if isinstance(term, NtXent):
                parts["temperature"] = term.temperature.detach()
        parts["pairs"] = summed.new_tensor(float(sum(counts)))
        on_z = next((name for name, term in self._terms.items() if term.reads_z), None)
        z_NZ = everyone[on_z] if on_z is not None else (h_1_nD[:0], h_2_nD[:0])
        return JointLoss(world_size() * share, parts, *(seen.detach() for seen in (h_1_nD, h_2_nD, *z_NZ)))


def _full(x: Tensor) -> Tensor:
    """float32 in place of half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _gathered(local: dict[str, list[Tensor]], counts: list[int]) -> dict[str, list[Tensor]]:
    """What the terms want of all workers, by their names; it travels together."""
    wanted = [part for parts in local.values() for part in parts]
    everyone = iter(gather_rows(torch.cat(wanted, 1), counts).split([part.shape[1] for part in wanted], 1))
    return {name: [next(everyone) for _ in parts] for name, parts in local.items()}
