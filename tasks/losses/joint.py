"""The joint objective, a weighted sum of terms, as one module that DistributedDataParallel can wrap.

View 1 is the mixture (h_m), view 2 the channel (h_c). The encoder processes all views of a worker in one batch, so
both views of a pair share the same batch statistics.

DistributedDataParallel AVERAGES gradients over workers, while the loss is a SUM of the workers' shares over
the global batch. The returned loss is therefore the local share times the number of workers: the average of
its gradients is exactly the gradient of the global loss. Every worker, even one without rows, uses all parameters and
makes the same collective calls in the same order inside `forward`; otherwise the other workers would wait forever.

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
    """The result of one step of the objective.

    Attributes:
        loss: scalar to call backward on: the local share of the global loss times the number of workers.
        parts: detached scalars of the GLOBAL batch, equal on all workers: "loss", each unweighted term by its name,
            "temperature" of NT-Xent, and "pairs" (N).
        h_1_nD, h_2_nD: representations of the local pairs, detached.
        z_1_NZ, z_2_NZ: projections of the global pairs by the first term on z, detached; empty if there is none.
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
        terms: by name, in the order in which they are summed.

    Raises:
        ValueError: there are no terms.
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
        """The head of the coincidence term; None without such a term."""
        return next((term.head for term in self._terms.values() if isinstance(term, Coincidence)), None)

    def forward(self, *views_nLF: Tensor, weights: Mapping[str, float] | None = None) -> JointLoss:
        """The loss of this worker's pairs against the global batch. Collective: all workers call it each step.

        Args:
            views_nLF: log-mels of both views of the local pairs; n can differ between workers and can be 0.
            weights: of the terms at this step, by name (the caller applies warm-up); 1 for terms that are not named.

        Raises:
            ValueError: the numbers of first and second views differ.
        """
        return self.loss(*self.encode(*views_nLF), weights=weights)

    def encode(self, *views_BLF: Tensor) -> tuple[Tensor, ...]:
        """h_BD of each view, all computed as one batch."""
        h_BD = _at_least_float32(self.trunk(torch.cat(views_BLF)))
        return h_BD.split([len(view) for view in views_BLF])

    def loss(self, h_1_nD: Tensor, h_2_nD: Tensor, *, weights: Mapping[str, float] | None = None) -> JointLoss:
        """The loss from representations; arguments and errors as for `forward`."""
        if len(h_1_nD) != len(h_2_nD):
            raise ValueError(
                f"the numbers of first and second views must be equal, got {len(h_1_nD)} and {len(h_2_nD)}"
            )
        counts = gather_counts(len(h_1_nD), h_1_nD.device)
        start = sum(counts[: rank()])
        local = {}
        for name, term in self._terms.items():
            local[name] = [_at_least_float32(part) for part in term.project(h_1_nD, h_2_nD)]
        gathered = _gathered(local, counts)
        shares = {}
        with torch.autocast(h_1_nD.device.type, enabled=False):
            for name, term in self._terms.items():
                shares[name] = term.share(h_1_nD, h_2_nD, local[name], gathered[name], start)
        weighted = [(weights or {}).get(name, 1.0) * share for name, share in shares.items()]
        share = sum(weighted[1:], weighted[0])
        summed = sum_over_workers(torch.stack([share.detach(), *(each.detach() for each in shares.values())]))
        parts = dict(zip(["loss", *shares], summed, strict=True))
        for term in self._terms.values():
            if isinstance(term, NtXent):
                parts["temperature"] = term.temperature.detach()
        parts["pairs"] = summed.new_tensor(float(sum(counts)))
        on_z = next((name for name, term in self._terms.items() if term.reads_z), None)
        z_NZ = gathered[on_z] if on_z is not None else (h_1_nD[:0], h_2_nD[:0])
        return JointLoss(world_size() * share, parts, *(x.detach() for x in (h_1_nD, h_2_nD, *z_NZ)))


def _at_least_float32(x: Tensor) -> Tensor:
    """Half precision converted to float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _gathered(local: dict[str, list[Tensor]], counts: list[int]) -> dict[str, list[Tensor]]:
    """The projections of all workers for each term, gathered in one collective call."""
    projections = [part for parts in local.values() for part in parts]
    widths = [part.shape[1] for part in projections]
    gathered = iter(gather_rows(torch.cat(projections, 1), counts).split(widths, 1))
    return {name: [next(gathered) for _ in parts] for name, parts in local.items()}
