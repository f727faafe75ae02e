"""VICReg against a slow loop in float64, hand-made cases, and shares of several workers."""

import torch
from torch import Tensor

from sepscene.tasks.losses.settings import VicregSettings
from sepscene.tasks.losses.vicreg import TINY_VARIANCE, vicreg

WEIGHTS = VicregSettings()


def loss_of(*views: Tensor) -> Tensor:
    return vicreg(views, views, WEIGHTS)


def slow_vicreg(z_1: Tensor, z_2: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """The three terms as the paper writes them, element by element."""
    pairs, features = z_1.shape
    invariance = torch.stack([(z_1[i, d] - z_2[i, d]) ** 2 for i in range(pairs) for d in range(features)]).mean()
    spread = torch.tensor(0.0, dtype=z_1.dtype)
    redundancy = torch.tensor(0.0, dtype=z_1.dtype)
    for z in (z_1, z_2):
        mean = [sum(z[:, d]) / pairs for d in range(features)]
        for a in range(features):
            for b in range(features):
                c = sum((z[i, a] - mean[a]) * (z[i, b] - mean[b]) for i in range(pairs)) / (pairs - 1)
                if a != b:
                    redundancy = redundancy + c**2 / features
                else:
                    spread = spread + torch.clamp(1 - torch.sqrt(c + TINY_VARIANCE), min=0) / features / 2
    return weights[0] * invariance + weights[1] * spread + weights[2] * redundancy


def views(pairs: int = 6, features: int = 4) -> tuple[Tensor, Tensor]:
    """Two views whose features have spreads on both sides of 1."""
    torch.manual_seed(0)
    scale = torch.linspace(0.3, 2.0, features, dtype=torch.float64)
    first, second = torch.randn(2, pairs, features, dtype=torch.float64) * scale
    return first.requires_grad_(), second.requires_grad_()


def test_equals_the_slow_loop() -> None:
    z_1, z_2 = views()
    weights = (25.0, 25.0, 1.0)
    fast = loss_of(z_1, z_2)
    slow = slow_vicreg(z_1, z_2, weights)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(fast, (z_1, z_2)), torch.autograd.grad(slow, (z_1, z_2))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


def test_shares_sum_to_the_loss_and_to_its_gradient() -> None:
    z_1, z_2 = views()
    pieces = ((0, 2), (2, 2), (2, 6))
    together = sum(vicreg((z_1[a:b], z_2[a:b]), (z_1, z_2), WEIGHTS) for a, b in pieces)
    alone = loss_of(z_1, z_2)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(together, (z_1, z_2)), torch.autograd.grad(alone, (z_1, z_2))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


def test_equal_views_with_unit_spread_and_no_correlation_cost_nothing() -> None:
    z = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert loss_of(z, z).item() == 0


def test_a_collapsed_representation_costs_its_missing_variance() -> None:
    z = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    loss = loss_of(z, z)
    loss.backward()
    assert abs(loss.item() - 25 * (1 - TINY_VARIANCE**0.5)) < 1e-12
    assert z.grad is not None and z.grad.isfinite().all()


def test_small_batches_are_finite() -> None:
    lonely = torch.ones(1, 4, requires_grad=True)
    loss = loss_of(lonely, 2 * lonely)
    loss.backward()
    assert loss.item() == 25 and loss_of(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0
