"""MixIT, the loss that trains a separator without clean sources, and the metrics of a separator.

A mixture of mixtures (MoM) is the sum of two clips. The separated channels are remixed into estimates of the two
clips: each channel is assigned to exactly one of them, and the assignment with the lowest loss counts (Wisdom et al.
2020).

Legend: B clips (or mixtures of mixtures), R references, S separated channels, K true sources, T samples,
A assignments.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

_FLOOR = 10 ** (-30 / 10)  # soft threshold: errors 30 dB below the reference hardly count
_TINY = 1e-8  # keeps the logarithm finite if error and reference are silent


@dataclass(frozen=True)
class MixitResult:
    """The result of MixIT for a batch.

    Attributes:
        loss_B: the loss of each mixture of mixtures, in dB of squared samples; differentiable.
        mixed_BRT: the channels remixed by the best assignment; differentiable.
        mix_matrix_BRS: that assignment, one 1 in each column.
    """

    loss_B: Tensor
    mixed_BRT: Tensor
    mix_matrix_BRS: Tensor


def mixit_loss(reference_BRT: Tensor, estimate_BST: Tensor) -> MixitResult:
    """The mixture-invariant training loss (docs/paper.md, "Training").

    Per reference 10 log10(|y - y'|^2 + 10^-3 |y|^2 + 1e-8), sums over time; mean over references; minimum
    over all R^S assignments of channels to references (a reference can get none).

    The assignment is found from inner products in float64, so only the chosen remix is computed.

    Args:
        reference_BRT: the clips that were summed.
        estimate_BST: the separated channels of their sum, any S >= 1.

    Raises:
        ValueError: batch or length differ, or there are too many assignments to try (R^S > 2^20).
    """
    _check_same(reference_BRT, estimate_BST, "reference_BRT", "estimate_BST")
    matrices_ARS = _assignments(reference_BRT.shape[1], estimate_BST.shape[1]).to(reference_BRT.device)
    with torch.no_grad():
        error_BAR = _errors(reference_BRT, estimate_BST, matrices_ARS)
        energy_BR = reference_BRT.double().square().sum(-1)
        cost_BA = _decibel(error_BAR, energy_BR[:, None]).mean(-1)
        mix_BRS = matrices_ARS[cost_BA.argmin(-1)].to(estimate_BST.dtype)
    mixed_BRT = mix_BRS @ estimate_BST
    error_BR = (reference_BRT - mixed_BRT).square().sum(-1)
    loss_B = _decibel(error_BR, reference_BRT.square().sum(-1)).mean(-1)
    return MixitResult(loss_B, mixed_BRT, mix_BRS)


def supervised_loss(source_BKT: Tensor, estimate_BST: Tensor) -> Tensor:
    """Permutation-invariant loss with known sources, the upper bound for MixIT. Scalar, in dB.

    The same thresholded error as MixIT's; the minimum over all one-to-one assignments of sources to channels. The
    remaining channels should be silent; their threshold is 30 dB below the mixture.

    Raises:
        ValueError: batch or length differ, or there are more sources than channels.
    """
    _check_same(source_BKT, estimate_BST, "source_BKT", "estimate_BST")
    sources = source_BKT.shape[1]
    silent = estimate_BST.shape[1] - sources
    if silent < 0:
        raise ValueError(f"{sources} sources for {sources + silent} channels: merge some with `loudest_targets`")
    target_BST = functional.pad(source_BKT, (0, 0, 0, silent))
    energy_BS = target_BST.square().sum(-1)
    energy_BS[:, sources:] = source_BKT.sum(1).double().square().sum(-1, keepdim=True)
    with torch.no_grad():
        error_BSS = (estimate_BST[:, :, None] - target_BST[:, None]).double().square().sum(-1)
        # The solver needs finite costs. A channel that is not finite makes the loss not finite with any target.
        cost_BSS = _decibel(error_BSS, energy_BS[:, None]).nan_to_num(0, 0, 0).cpu().numpy()
        best = [linear_sum_assignment(cost_SS)[1].tolist() for cost_SS in cost_BSS]
        best_BS = torch.tensor(best, device=target_BST.device)
    error_BS = (target_BST.take_along_dim(best_BS[..., None], 1) - estimate_BST).square().sum(-1)
    return _decibel(error_BS, energy_BS.take_along_dim(best_BS, 1)).mean()


def loudest_targets(source_KT: Tensor, channels: int) -> Tensor:
    """At most `channels` targets for a separator that has fewer channels than the scene has sources.

    Each of the loudest sources is a target; the sum of all others is the last target; silent sources are dropped.
    Choosing the groups with the lowest loss instead would put the mixture into one channel and the quietest source,
    nearly silence, into the other: a separator trained this way would not learn to separate.

    Returns:
        (targets, T), at least one target, loudest first; the sum of the others is last.
    """
    energy_K = source_KT.double().square().sum(-1)
    order = energy_K.argsort(descending=True, stable=True)
    sorted_KT = source_KT[order[: max(1, int((energy_K > 0).sum()))]]
    if len(sorted_KT) <= channels:
        return sorted_KT
    return torch.cat([sorted_KT[: channels - 1], sorted_KT[channels - 1 :].sum(0, keepdim=True)])


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB over the last axis; leading axes broadcast.

    10 log10(|a y|^2 / |a y - e|^2) with a = <e, y> / |y|^2 (Le Roux et al. 2019); means are not removed.
    Finite for silence: a constant that is tiny relative to the signal's power is added to both powers, which bounds
    the result to +-100 dB.
    """
    estimate = estimate.double()
    reference = reference.double()
    power = reference.square().sum(-1, keepdim=True)
    projection = (estimate * reference).sum(-1, keepdim=True) / power.clamp_min(1e-30) * reference
    bound = 1e-10 * estimate.square().sum(-1) + 1e-30
    signal = projection.square().sum(-1)
    noise = (projection - estimate).square().sum(-1)
    return 10 * torch.log10((signal + bound) / (noise + bound))


def mixture_improvement(reference_BRT: Tensor, estimate_BST: Tensor) -> Tensor:
    """MoMi_B in dB: SI-SDR improvement on mixtures of mixtures, for real sound without known sources.

    The channels are remixed by the assignment that MixIT finds. The result is the mean over the references of
    SI-SDR(remix, reference) - SI-SDR(sum of references, reference) (Wisdom et al. 2020, "MoMi").
    Silent references do not count; a mixture of silent clips gives nan.
    """
    mixed_BRT = mixit_loss(reference_BRT, estimate_BST).mixed_BRT
    gain_BR = si_sdr(mixed_BRT, reference_BRT) - si_sdr(reference_BRT.sum(1, keepdim=True), reference_BRT)
    active_BR = reference_BRT.abs().amax(-1) > 0
    return torch.where(active_BR, gain_BR, 0).sum(-1) / active_BR.sum(-1)


def si_sdr_improvement(mixture_BT: Tensor, source_BKT: Tensor, separated_BST: Tensor) -> Tensor:
    """SI-SDR improvement_B in dB on scenes with known sources, by the best one-to-one match.

    Sources and channels are matched one-to-one so that the mean of SI-SDR(channel, source) -
    SI-SDR(mixture, source) over the matched pairs is largest. With fewer channels than sources (S < K) only S
    sources are matched: the metric then describes the S sources that were separated best. Silent sources do not
    count; a clip without an active source gives nan.
    """
    _check_same(source_BKT, separated_BST, "source_BKT", "separated_BST")
    with torch.no_grad():
        gain_BKS = si_sdr(separated_BST[:, None], source_BKT[:, :, None])
        gain_BKS = gain_BKS - si_sdr(mixture_BT[:, None], source_BKT)[..., None]
        active_BK = (source_BKT.abs().amax(-1) > 0).cpu().numpy()
    improvement_B = [
        _best_match(gain_KS[active_K]) for gain_KS, active_K in zip(gain_BKS.cpu().numpy(), active_BK, strict=True)
    ]
    return torch.tensor(improvement_B, dtype=torch.float64, device=mixture_BT.device)


def _best_match(gain_KS: np.ndarray) -> float:
    rows, columns = linear_sum_assignment(gain_KS, maximize=True)
    return float(gain_KS[rows, columns].mean()) if len(rows) else float("nan")


@cache
def _assignments(targets: int, parts: int) -> Tensor:
    """All 0/1 matrices (A, targets, parts) that assign each part to one target, in lexicographic order."""
    if targets**parts > 2**20:
        raise ValueError(f"{targets}^{parts} assignments are too many to try: use fewer separated channels")
    choices = torch.tensor(list(product(range(targets), repeat=parts)))
    return (choices[:, None, :] == torch.arange(targets)[None, :, None]).double()


def _errors(target_BRT: Tensor, part_BPT: Tensor, matrices_ARP: Tensor) -> Tensor:
    """|target - matrix @ parts|^2 for every assignment: (B, A, R), float64, without computing the remixes."""
    target = target_BRT.double()
    part = part_BPT.double()
    gram_BPP = part @ part.mT
    cross_BRP = target @ part.mT
    quadratic = torch.einsum("arp,bpq,arq->bar", matrices_ARP, gram_BPP, matrices_ARP)
    linear = torch.einsum("arp,brp->bar", matrices_ARP, cross_BRP)
    return (target.square().sum(-1)[:, None] - 2 * linear + quadratic).clamp_min(0)


def _decibel(error: Tensor, energy: Tensor) -> Tensor:
    return 10 * torch.log10(error + _FLOOR * energy + _TINY)


def _check_same(left: Tensor, right: Tensor, left_name: str, right_name: str) -> None:
    same = left.dim() == right.dim() == 3 and left.shape[0] == right.shape[0] and left.shape[2] == right.shape[2]
    if not same:
        raise ValueError(
            f"{left_name} {tuple(left.shape)} and {right_name} {tuple(right.shape)} must be (clips, signals, "
            "samples) with the same clips and samples"
        )
