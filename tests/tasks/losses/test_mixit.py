"""MixIT against the reference vectors and a slow loop; SI-SDR against closed forms."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sepscene.tasks.losses.mixit import (
    loudest_targets,
    mixit_loss,
    mixture_improvement,
    si_sdr,
    si_sdr_improvement,
    supervised_loss,
)


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_equals_the_reference(shared_dir: Path, case: str) -> None:
    vectors = np.load(shared_dir / "reference" / "mixit_loss.npz")
    reference, estimate = (torch.from_numpy(vectors[f"{case}_{name}"]) for name in ("reference", "estimate"))
    result = mixit_loss(reference, estimate)
    np.testing.assert_allclose(result.loss_B, vectors[f"{case}_loss"], rtol=1e-5)
    np.testing.assert_allclose(float(result.loss_B.mean()), vectors[f"{case}_loss"].mean(), rtol=1e-5)
    np.testing.assert_array_equal(result.mix_matrix_BRS, vectors[f"{case}_mix_matrix"])
    np.testing.assert_allclose(result.mixed_BRT, vectors[f"{case}_mixed"], atol=1e-6)


def slow_mixit(reference_RT: Tensor, estimate_ST: Tensor) -> Tensor:
    """Every assignment remixed and compared in turn."""
    losses = []
    for owners in product(range(len(reference_RT)), repeat=len(estimate_ST)):
        terms = []
        for r, y in enumerate(reference_RT):
            remix = sum((estimate_ST[s] for s, owner in enumerate(owners) if owner == r), torch.zeros_like(y))
            terms.append(10 * torch.log10((y - remix).square().sum() + 1e-3 * y.square().sum() + 1e-8))
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses).min()


def test_equals_a_slow_loop_with_gradients() -> None:
    torch.manual_seed(0)
    reference = torch.randn(2, 2, 50, dtype=torch.float64)
    estimate = torch.randn(2, 3, 50, dtype=torch.float64, requires_grad=True)
    fast = mixit_loss(reference, estimate).loss_B.mean()
    (fast_gradient,) = torch.autograd.grad(fast, estimate)
    slow = torch.stack([slow_mixit(r, e) for r, e in zip(reference, estimate, strict=True)]).mean()
    (slow_gradient,) = torch.autograd.grad(slow, estimate)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-10, atol=1e-14)


def test_perfect_estimates_reach_the_threshold_and_the_true_assignment() -> None:
    torch.manual_seed(0)
    parts = torch.randn(1, 4, 1000)
    reference = torch.stack([parts[:, 0] + parts[:, 2], parts[:, 1] + parts[:, 3]], 1)
    result = mixit_loss(reference, parts)
    assert result.mix_matrix_BRS.tolist() == [[[1, 0, 1, 0], [0, 1, 0, 1]]]
    energy = reference.square().sum(-1)
    expected = 10 * torch.log10(1e-3 * energy + 1e-8).mean()
    torch.testing.assert_close(result.loss_B.mean(), expected, rtol=1e-5, atol=0)


def test_silence_stays_finite() -> None:
    estimate = torch.zeros(1, 2, 100, requires_grad=True)
    result = mixit_loss(torch.zeros(1, 2, 100), estimate)
    result.loss_B.mean().backward()
    assert result.loss_B.mean().item() == pytest.approx(-80, abs=1e-4)
    assert estimate.grad is not None and torch.equal(estimate.grad, torch.zeros_like(estimate))


def test_shapes_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match="reference_BRT \\(1, 2, 100\\)"):
        mixit_loss(torch.zeros(1, 2, 100), torch.zeros(1, 2, 99))
    with pytest.raises(ValueError, match="too many"):
        mixit_loss(torch.zeros(1, 4, 8), torch.zeros(1, 12, 8))


def test_si_sdr_closed_forms() -> None:
    time = torch.arange(1000) / 1000
    tone = torch.sin(2 * torch.pi * 5 * time)
    other = torch.sin(2 * torch.pi * 7 * time)
    # Orthogonal noise of a tenth of the amplitude: 20 dB at any scale.
    for scale in (1e-3, 1.0, 50.0):
        assert si_sdr(scale * (tone + 0.1 * other), tone).item() == pytest.approx(20, abs=1e-3)
    assert si_sdr(tone, tone).item() == pytest.approx(100, abs=0.01)
    assert si_sdr(other, tone).item() < -90
    assert torch.isfinite(si_sdr(torch.zeros(10), torch.zeros(10)))


def test_improvement_on_mixtures_of_mixtures() -> None:
    torch.manual_seed(0)
    reference = torch.randn(3, 2, 4000)
    perfect = mixture_improvement(reference, reference)
    mom = reference.sum(1, keepdim=True)
    before = si_sdr(mom, reference).mean(-1)
    torch.testing.assert_close(perfect, 100 - before, rtol=0, atol=0.01)
    # A separator that returns the mixture gains nothing on the reference that gets it, and at most 0 on the other.
    lazy = torch.cat([mom / 2, mom / 2], 1)
    torch.testing.assert_close(
        mixture_improvement(reference, lazy), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0
    )
    reference[0, 1] = 0
    assert torch.isfinite(mixture_improvement(reference, reference)).all()


def test_improvement_with_known_sources_is_the_best_permutation() -> None:
    torch.manual_seed(0)
    sources = torch.randn(4, 3, 500)
    separated = sources[:, [2, 0, 1]] + 0.3 * torch.randn(4, 3, 500)
    mixture = sources.sum(1)
    fast = si_sdr_improvement(mixture, sources, separated)
    for b in range(4):
        slow = max(
            np.mean(
                [(si_sdr(separated[b, s], sources[b, k]) - si_sdr(mixture[b], sources[b, k])) for k, s in enumerate(p)]
            )
            for p in permutations(range(3))
        )
        assert fast[b].item() == pytest.approx(slow, abs=1e-9)


def test_improvement_with_fewer_channels_and_silent_sources() -> None:
    torch.manual_seed(0)
    sources = torch.randn(1, 3, 500)
    mixture = sources.sum(1)
    two = si_sdr_improvement(mixture, sources, sources[:, [1, 2]])
    before = si_sdr(mixture[:, None], sources)[0]
    assert two.item() == pytest.approx(100 - before[[1, 2]].mean().item(), abs=0.01)
    sources[:, 0] = 0
    silent_left_out = si_sdr_improvement(sources.sum(1), sources, sources[:, [1, 2]])
    assert silent_left_out.item() > 90
    assert si_sdr_improvement(mixture, torch.zeros(1, 3, 500), sources).isnan().all()


def test_supervised_loss_permutes_and_pads() -> None:
    torch.manual_seed(0)
    sources = torch.randn(2, 2, 300, dtype=torch.float64)
    floor = 10 * torch.log10(1e-3 * sources.square().sum(-1) + 1e-8)
    torch.testing.assert_close(supervised_loss(sources, sources.flip(1)), floor.mean(), rtol=1e-9, atol=0)
    # The target of a third channel is silence; its threshold depends on the mixture.
    padded = torch.cat([torch.zeros(2, 1, 300, dtype=torch.float64), sources], 1)
    mixture = 10 * torch.log10(1e-3 * sources.sum(1, keepdim=True).square().sum(-1) + 1e-8)
    torch.testing.assert_close(
        supervised_loss(sources, padded), torch.cat([floor, mixture], 1).mean(), rtol=1e-9, atol=0
    )
    with pytest.raises(ValueError, match="2 sources for 1 channels"):
        supervised_loss(sources, sources[:, :1])
    channels = padded.clone().requires_grad_()
    supervised_loss(sources, channels).backward()
    assert channels.grad is not None and torch.isfinite(channels.grad).all()
    for broken in (float("nan"), float("inf")):  # training stops if the loss is not finite
        assert not supervised_loss(
            sources, torch.cat([padded[:, :2], torch.full_like(sources[:, :1], broken)], 1)
        ).isfinite()


def test_supervised_loss_is_the_smallest_over_all_permutations() -> None:
    torch.manual_seed(0)
    sources = torch.randn(6, 2, 100, dtype=torch.float64)
    channels = torch.randn(6, 3, 100, dtype=torch.float64)
    targets = torch.cat([sources, torch.zeros(6, 1, 100, dtype=torch.float64)], 1)
    energy = torch.cat([sources, sources.sum(1, keepdim=True)], 1).square().sum(-1)
    costs = [
        10 * torch.log10((targets[:, order] - channels).square().sum(-1) + 1e-3 * energy[:, order] + 1e-8)
        for order in map(list, permutations(range(3)))
    ]
    smallest = torch.stack(costs).mean(-1).min(0).values.mean()
    torch.testing.assert_close(supervised_loss(sources, channels), smallest, rtol=1e-12, atol=0)


def test_targets_are_the_loudest_sources_and_the_rest_together() -> None:
    torch.manual_seed(0)
    sources = torch.randn(5, 40) * torch.tensor([1.0, 0.0, 3.0, 0.1, 2.0])[:, None]
    rest = sources[0] + sources[3] + sources[4]
    torch.testing.assert_close(loudest_targets(sources, 2), torch.stack([sources[2], rest]))
    torch.testing.assert_close(loudest_targets(sources, 1), sources.sum(0, keepdim=True))
    assert loudest_targets(sources, 8).equal(sources[[2, 4, 0, 3]])
    assert loudest_targets(torch.zeros(3, 40), 2).shape == (1, 40)
