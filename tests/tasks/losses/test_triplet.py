"""The triplet loss against a slow loop and hand-made cases."""

import pytest
import torch
from torch import Tensor

from sepscene.tasks.losses.triplet import triplet_loss


def slow_triplet(z_1: Tensor, z_2: Tensor, margin: float) -> Tensor:
    a, p = (z / z.norm(dim=1, keepdim=True) for z in (z_1, z_2))
    terms = []
    for i in range(len(a)):
        positive = (a[i] - p[i]).square().sum()
        distances = [(a[i] - p[j]).square().sum() for j in range(len(p)) if j != i]
        farther = [d for d in distances if d > positive]
        negative = min(farther) if farther else max(distances)
        terms.append(torch.clamp(positive - negative + margin, min=0))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_equals_the_slow_loop(margin: float) -> None:
    torch.manual_seed(0)
    z_1, z_2 = (torch.randn(8, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    fast = triplet_loss(z_1, z_2, margin=margin)
    slow = slow_triplet(z_1, z_2, margin)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(fast, (z_1, z_2)), torch.autograd.grad(slow, (z_1, z_2))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_shares_sum_to_the_loss() -> None:
    torch.manual_seed(0)
    z_1, z_2 = torch.randn(2, 5, 3, dtype=torch.float64)
    shares = [triplet_loss(z_1[a:b], z_2[a:b], z_2, a, 0.5) for a, b in ((0, 2), (2, 2), (2, 5))]
    torch.testing.assert_close(sum(shares), triplet_loss(z_1, z_2, margin=0.5), rtol=1e-12, atol=0)


def test_well_separated_rows_cost_nothing_and_small_batches_are_zero() -> None:
    assert triplet_loss(torch.eye(4), torch.eye(4)).item() == 0
    lonely = torch.ones(1, 4, requires_grad=True)
    loss = triplet_loss(lonely, lonely)
    loss.backward()
    assert loss.item() == 0
    assert triplet_loss(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0
