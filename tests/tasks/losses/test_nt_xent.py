"""NT-Xent against closed forms, a slow double loop and float64."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from sepscene.tasks.losses.nt_xent import nt_xent, unit_rows

D64 = torch.float64


def views(n: int = 5, width: int = 4, dtype: torch.dtype = D64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, n, width, generator=generator).to(dtype)
    return z[0].requires_grad_(), z[1].requires_grad_()


def slow_nt_xent(z_1: Tensor, z_2: Tensor, temperature: float | Tensor) -> Tensor:
    """The formula of paper.md, term by term."""
    z = [*z_1, *z_2]
    count = len(z_1)
    terms = []
    for i in range(2 * count):
        similarity = [torch.cosine_similarity(z[i], z[v], dim=0) / temperature for v in range(2 * count)]
        others = torch.stack([similarity[v] for v in range(2 * count) if v != i])
        positive = similarity[(i + count) % (2 * count)]
        terms.append(-torch.log(positive.exp() / others.exp().sum()))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("block_bytes", [1, 8 * 10 * 3, 2**20])
def test_equals_the_double_loop(block_bytes: int) -> None:
    z_1, z_2 = views()
    tau = torch.tensor(0.3, dtype=D64, requires_grad=True)
    fast = torch.autograd.grad(nt_xent(z_1, z_2, temperature=tau, block_bytes=block_bytes), (z_1, z_2, tau))
    slow = torch.autograd.grad(slow_nt_xent(z_1, z_2, tau), (z_1, z_2, tau))
    torch.testing.assert_close(
        nt_xent(z_1, z_2, temperature=tau, block_bytes=block_bytes),
        slow_nt_xent(z_1, z_2, tau),
        rtol=1e-12,
        atol=0,
    )
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-13)


def test_closed_forms() -> None:
    n = 6
    tau = 0.2
    together = nt_xent(torch.eye(n, dtype=D64), 3 * torch.eye(n, dtype=D64), temperature=tau)
    assert together.item() == pytest.approx(-log(exp(1 / tau) / (exp(1 / tau) + 2 * n - 2)), rel=1e-12)
    collapsed = nt_xent(torch.ones(n, 4, dtype=D64), torch.ones(n, 4, dtype=D64), temperature=tau)
    assert collapsed.item() == pytest.approx(log(2 * n - 1), rel=1e-12)
    one_pair = nt_xent(torch.ones(1, 4), torch.randn(1, 4))
    assert one_pair.item() == pytest.approx(0, abs=1e-6)


def test_shares_of_uneven_workers_sum_to_the_loss() -> None:
    z_1, z_2 = views(6)
    whole = nt_xent(z_1, z_2, temperature=0.1)
    parts = [(0, 3), (3, 3), (3, 5), (5, 6)]
    shares = [nt_xent(z_1[a:b], z_2[a:b], z_1, z_2, a, 0.1) for a, b in parts]
    torch.testing.assert_close(sum(shares), whole, rtol=1e-12, atol=0)
    summed = torch.autograd.grad(torch.stack(shares).sum(), (z_1, z_2))
    torch.testing.assert_close(summed, torch.autograd.grad(whole, (z_1, z_2)), rtol=1e-10, atol=1e-14)


def test_float32_is_close_to_float64_at_a_sharp_temperature() -> None:
    z_1, z_2 = views(64, 32, torch.float32)
    exact = nt_xent(z_1.double(), z_2.double(), temperature=0.02)
    torch.testing.assert_close(nt_xent(z_1, z_2, temperature=0.02).double(), exact, rtol=3e-6, atol=0)


def test_no_rows_and_no_graph() -> None:
    z_1, z_2 = views(4)
    nothing = nt_xent(z_1[:0], z_2[:0], z_1, z_2, 2)
    assert nothing.item() == 0
    nothing.backward()
    assert z_1.grad is not None and torch.equal(z_1.grad, torch.zeros_like(z_1))
    assert nt_xent(z_1[:0], z_2[:0]).item() == 0
    with torch.no_grad():
        without = nt_xent(z_1, z_2)
    assert not without.requires_grad and without.item() == nt_xent(z_1, z_2).item()


def test_a_row_without_direction_gets_no_gradient() -> None:
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    unit = unit_rows(z)
    assert torch.equal(unit.detach(), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    unit.sum().backward()
    assert z.grad is not None and torch.equal(z.grad[0], torch.zeros(2)) and z.grad[1].abs().max() < 1
