"""Coincidence prediction over all pairs against the head called pair by pair, closed forms and float64."""

import subprocess
import sys
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.tasks.losses.coincidence import coincidence_loss

D64 = torch.float64
WIDTH = 3
HIDDEN = 7


def setup(n: int = 5, dtype: torch.dtype = D64) -> tuple[CoincidenceHead, Tensor, Tensor]:
    torch.manual_seed(0)
    head = CoincidenceHead(WIDTH, HIDDEN)
    torch.nn.init.normal_(head.first.bias)
    h = torch.randn(2, n, WIDTH).to(dtype)
    return head.to(dtype), h[0].requires_grad_(), h[1].requires_grad_()


def slow_coincidence(head: CoincidenceHead, h_m: Tensor, h_c: Tensor) -> Tensor:
    """The formula of paper.md, pair by pair, through the head's own forward."""
    count = len(h_m)
    positives = []
    negatives = []
    for i in range(count):
        for j in range(count):
            g = torch.sigmoid(head(h_m[i : i + 1], h_c[j : j + 1]))[0]
            if i == j:
                positives.append(-torch.log(g))
            else:
                negatives.append(-torch.log(1 - g))
    return torch.stack(positives).mean() + torch.stack(negatives).sum() / (count * (count - 1))


@pytest.mark.parametrize("tile_pairs", [1, 4, 9, 100])
def test_equals_the_double_loop(tile_pairs: int) -> None:
    head, h_m, h_c = setup()
    inputs = (h_m, h_c, *head.parameters())
    fast = coincidence_loss(head, h_m, h_c, tile_bytes=tile_pairs * HIDDEN * 8)
    slow = slow_coincidence(head, h_m, h_c)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), rtol=1e-10, atol=1e-14
    )


def test_closed_form_of_an_undecided_head() -> None:
    head, h_m, h_c = setup()
    torch.nn.init.zeros_(head.last.weight)
    torch.nn.init.constant_(head.last.bias, 0.0)
    assert coincidence_loss(head, h_m, h_c).item() == pytest.approx(2 * log(2), rel=1e-12)
    # Every pair gets a logit of 3: the loss of the negatives is 3 higher than that of the positives.
    torch.nn.init.constant_(head.last.bias, 3.0)
    cheap = torch.nn.functional.softplus(torch.tensor(-3.0, dtype=D64)).item()
    assert coincidence_loss(head, h_m, h_c).item() == pytest.approx(cheap + cheap + 3, rel=1e-12)


def test_shares_of_uneven_workers_sum_to_the_loss() -> None:
    head, h_m, h_c = setup(6)
    inputs = (h_m, h_c, *head.parameters())
    whole = coincidence_loss(head, h_m, h_c)
    parts = [(0, 1), (1, 4), (4, 4), (4, 6)]
    shares = [coincidence_loss(head, h_m[a:b], h_c[a:b], h_c, a, tile_bytes=4 * HIDDEN * 8) for a, b in parts]
    torch.testing.assert_close(sum(shares), whole, rtol=1e-12, atol=0)
    summed = torch.autograd.grad(torch.stack(shares).sum(), inputs)
    torch.testing.assert_close(summed, torch.autograd.grad(whole, inputs), rtol=1e-10, atol=1e-14)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    head, h_m, h_c = setup(dtype=torch.float32)
    torch.nn.init.constant_(head.last.bias, 500.0)
    loss = coincidence_loss(head, h_m, h_c)
    loss.backward()
    assert loss.item() == pytest.approx(500, rel=0.01)
    assert h_m.grad is not None and torch.isfinite(h_m.grad).all()


def test_one_pair_and_none() -> None:
    head, h_m, h_c = setup(1)
    logit = head(h_m, h_c)
    expected = torch.nn.functional.softplus(-logit).sum()
    torch.testing.assert_close(coincidence_loss(head, h_m, h_c), expected, rtol=1e-12, atol=0)
    nothing = coincidence_loss(head, h_m[:0], h_c[:0])
    nothing.backward()
    assert nothing.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in head.parameters() if p.grad is not None)


def kept_bytes(n: int) -> int:
    """Bytes that the graph keeps for the backward pass."""
    head, h_m, h_c = setup(n, torch.float32)
    kept: list[int] = []

    def record(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        coincidence_loss(head, h_m, h_c, tile_bytes=4096)
    return sum(kept)


def test_what_the_backward_needs_grows_linearly() -> None:
    grown = [kept_bytes(n) for n in (64, 128, 256)]
    assert grown[2] - grown[1] == 2 * (grown[1] - grown[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_4096_pairs_fit_in_2_gb() -> None:
    command = [sys.executable, "-m", "benchmarks.losses", "--one", "coincidence ours", "--n", "4096"]
    root = Path(__file__).resolve().parents[3]
    peak = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    assert 0 < float(peak) < 2e9
