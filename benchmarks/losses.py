"""Time, extra memory and gradients of the contrastive losses, compared with the usual formulations in the same run.

    python -m benchmarks.losses [--device cuda]

Time is the processor time of forward and backward on one thread (on a GPU: synchronised wall time), the median of
several interleaved runs. Extra memory is the increase of the peak memory over the inputs, measured in a separate
process (on a GPU: the allocator's peak). The naive formulations are left out where they would need tens of gigabytes.
Gradients are compared with float64; a single hidden unit that is rounded across zero at its ReLU gives an error of
5e-5.

Legend: N pairs of the global batch, D = 128 features, H = 512 hidden units.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.tasks.losses.coincidence import coincidence_loss
from sepscene.tasks.losses.nt_xent import nt_xent

D = 128
H = 512
TAU = 0.2
Loss = Callable[[CoincidenceHead, Tensor, Tensor], Tensor]


def naive_coincidence(head: CoincidenceHead, h_m: Tensor, h_c: Tensor) -> Tensor:
    """All N^2 concatenations through the head: stores (N^2, 2D) inputs and (N^2, H) activations."""
    n = len(h_m)
    logits = head(h_m.repeat_interleave(n, 0), h_c.repeat(n, 1)).view(n, n)
    return _balanced(logits)


def broadcast_coincidence(head: CoincidenceHead, h_m: Tensor, h_c: Tensor) -> Tensor:
    """The first layer factored, but without tiles: stores (N, N, H) activations for the backward pass."""
    weight_a, weight_b = head.first.weight.split(h_m.shape[1], 1)
    hidden = functional.linear(h_m, weight_a)[:, None] + functional.linear(h_c, weight_b, head.first.bias)[None]
    return _balanced(head.last(functional.relu(hidden))[..., 0])


def _balanced(logits: Tensor) -> Tensor:
    same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return functional.softplus(-logits[same]).mean() + functional.softplus(logits[~same]).mean()


def usual_nt_xent(head: CoincidenceHead, z_1: Tensor, z_2: Tensor) -> Tensor:
    """Cross entropy over the 2N x 2N matrix of cosine similarities with a masked diagonal."""
    z = functional.normalize(torch.cat([z_1, z_2]), dim=1)
    n = len(z_1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / TAU).masked_fill(itself, float("-inf"))
    return functional.cross_entropy(logits, (torch.arange(2 * n, device=z.device) + n) % (2 * n))


def our_nt_xent(head: CoincidenceHead, z_1: Tensor, z_2: Tensor) -> Tensor:
    """`tasks.losses.nt_xent`."""
    return nt_xent(z_1, z_2, temperature=TAU)


LOSSES: dict[str, Loss] = {
    "coincidence naive": naive_coincidence,
    "coincidence broadcast": broadcast_coincidence,
    "coincidence ours": coincidence_loss,
    "NT-Xent usual": usual_nt_xent,
    "NT-Xent ours": our_nt_xent,
}
SIZES = {"coincidence": (128, 256, 512, 1024, 4096), "NT-Xent": (512, 1024, 4096)}
LARGEST = {
    "coincidence naive": 512,
    "coincidence broadcast": 512,
}  # with larger N, these formulations need too much memory


def inputs(n: int, device: str) -> tuple[CoincidenceHead, Tensor, Tensor]:
    """A head and two views of n pairs."""
    torch.manual_seed(0)
    head = CoincidenceHead(D, H).to(device)
    h = torch.randn(2, n, D, device=device)
    return head, h[0].requires_grad_(), h[1].requires_grad_()


def step(loss: Loss, head: CoincidenceHead, left: Tensor, right: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    on_gpu = left.is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    loss(head, left, right).backward()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def extra_memory(name: str, n: int, device: str) -> float:
    """Increase of the peak memory over the inputs, in bytes; on a CPU only meaningful in a fresh process."""
    step(LOSSES[name], *inputs(8, device))
    arguments = inputs(n, device)
    if device == "cpu":
        before = peak_bytes()
        step(LOSSES[name], *arguments)
        return peak_bytes() - before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(LOSSES[name], *arguments)
    return torch.cuda.max_memory_allocated() - before


def memory_in_own_process(name: str, n: int, device: str) -> float:
    """`extra_memory`, measured in a fresh interpreter."""
    command = [sys.executable, "-m", "benchmarks.losses", "--device", device, "--one", name, "--n", str(n)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_bytes() -> int:
    """This process's peak resident memory so far (`getrusage` would inherit the parent's)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def gradient_error(name: str, n: int, device: str) -> float:
    """Relative error of the float32 gradients of both views, compared with float64."""
    gradients = []
    for loss, dtype in ((LOSSES[name], torch.float32), (LOSSES[f"{name.split()[0]} ours"], torch.float64)):
        head, left, right = inputs(n, device)
        views = [view.detach().to(dtype).requires_grad_() for view in (left, right)]
        loss(head.to(dtype), *views).backward()
        gradients.append(torch.cat([view.grad.double() for view in views if view.grad is not None]))
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def compare(family: str, n: int, device: str, repeats: int) -> None:
    """Print one line per formulation: time, memory, and their ratios to ours."""
    names = [name for name in LOSSES if name.startswith(family) and n <= LARGEST.get(name, n)]
    arguments = inputs(n, device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names:
            spent = step(LOSSES[name], *arguments)
            if turn:  # the first turn is a warm-up
                seconds[name].append(spent)
    ours = f"{family} ours"
    memory = {name: memory_in_own_process(name, n, device) for name in names}
    for name in names:
        error = f"   gradient error {gradient_error(name, n, device):.0e}" if n <= 512 else ""
        print(
            f"{name:22} N={n:5}  {median(seconds[name]):8.3f} s  {memory[name] / 2**20:8.0f} MiB"
            f"   x{median(seconds[name]) / median(seconds[ours]):6.1f} time"
            f"   x{memory[name] / max(1, memory[ours]):7.1f} memory{error}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help="print the extra memory of one formulation")
    parser.add_argument("--n", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(extra_memory(options.one, options.n, options.device))
        return
    print(f"torch {torch.__version__}, {options.device}, D={D}, H={H}, float32")
    print(f"multiply-adds of a forward pass: naive N^2 {2 * D * H + H}; factored N {2 * D * H} + N^2 {H}")
    for family, sizes in SIZES.items():
        for n in sizes:
            compare(family, n, options.device, repeats=3 if n > 1024 else 5)


if __name__ == "__main__":
    main()
