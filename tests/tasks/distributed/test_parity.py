"""Several workers compute what one process computes on the global batch: loss, gradients, batch statistics.

Each worker process runs every case and leaves its results in a folder; the test compares them with one
process.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.settings import Cnn14Config
from sepscene.tasks.distributed.batchnorm import synchronise_batchnorm
from sepscene.tasks.distributed.gather import gather_ids, gather_rows
from sepscene.tasks.losses.gradcache import accumulate
from sepscene.tasks.losses.joint import JointLoss, JointObjective
from sepscene.tasks.losses.settings import (
    CoincidenceSettings,
    NtXentSettings,
    TermSettings,
    TripletSettings,
    VicregSettings,
)
from sepscene.tasks.losses.terms import HeadSizes, build_term

ROWS = {2: (3, 2), 4: (3, 0, 2, 1)}  # uneven, including a worker without rows
CASES: dict[str, dict[str, Any]] = {
    "joint": {"similarity": NtXentSettings(learn_temperature=True)},
    "triplet": {"similarity": TripletSettings(margin=1.0)},
    "VICReg": {"similarity": VicregSettings()},
    "VICReg in chunks": {"similarity": VicregSettings(), "chunked": True},
    "three terms": {"more": {"vicreg": VicregSettings()}},
    "chunks": {"chunked": True},
    "chunks against the whole batch": {"chunked": True, "fixed": True},
    "float32": {"dtype": torch.float32},
}


def build(
    dtype: torch.dtype = torch.float64,
    chunked: bool = False,
    fixed: bool = False,
    similarity: TermSettings | None = None,
    more: dict[str, TermSettings] | None = None,
) -> JointObjective:
    del chunked
    torch.manual_seed(0)
    config = Cnn14Config(widths=(4, 4, 8, 8, 8, 8), embedding_dim=6, mel_bands=32)
    chosen = {"similarity": similarity or NtXentSettings(), "coincidence": CoincidenceSettings(), **(more or {})}
    trunk = Cnn14(config)
    sizes = HeadSizes(embedding_dim=6, hidden=10, projection=5)
    terms = {name: build_term(name, settings, sizes) for name, settings in chosen.items()}
    # With fixed statistics of BatchNorm, chunks and the whole batch are the same function.
    return JointObjective(trunk, terms).to(dtype).train(not fixed)


def global_views(rows: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Scales differ between rows, so local batch statistics would differ between workers.
    scale = torch.arange(1, rows + 1)[:, None, None]
    return [(torch.randn(rows, 32, 32, generator=generator) * scale).to(dtype) for _ in range(2)]


def local(views: list[Tensor], sizes: tuple[int, ...], rank: int) -> list[Tensor]:
    start = sum(sizes[:rank])
    return [view[start : start + sizes[rank]] for view in views]


def halves(views: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Two chunks, the first as long as or longer than the second."""
    middle = (len(views[0]) + 1) // 2
    return [tuple(view[:middle] for view in views), tuple(view[middle:] for view in views)]


def state_of(objective: JointObjective, result: JointLoss) -> dict[str, Any]:
    gradients = {n: p.grad for n, p in objective.named_parameters() if p.requires_grad}
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    return {"parts": result.parts, "gradients": gradients, "buffers": buffers}


def run_case(case: dict[str, Any], sizes: tuple[int, ...], rank: int) -> dict[str, Any]:
    views = global_views(sum(sizes), case.get("dtype", torch.float64))
    objective = build(**case)
    synchronise_batchnorm(objective)
    if case.get("chunked"):
        return state_of(
            objective, accumulate(objective, halves(local(views, sizes, rank)), weights={"coincidence": 0.7})
        )
    parallel = DistributedDataParallel(objective)  # must outlive the backward pass
    result = parallel(*local(views, sizes, rank), weights={"coincidence": 0.7})
    result.loss.backward()
    return state_of(objective, result)


def norm_leak(sizes: tuple[int, ...], rank: int) -> dict[int, Tensor]:
    """h of every global row, with the rows assigned to the workers in order and in reverse."""
    objective = build()
    synchronise_batchnorm(objective)
    (views,) = global_views(sum(sizes), torch.float64)[:1]
    forwards = gather_rows(objective.encode(*local([views], sizes, rank))[0])
    backwards = gather_rows(objective.encode(*local([views.flip(0)], sizes, rank))[0]).flip(0)
    return {0: forwards.detach(), 1: backwards.detach()}


def worker(rank: int, sizes: tuple[int, ...], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(sizes))
    results: dict[str, Any] = {name: run_case(case, sizes, rank) for name, case in CASES.items()}
    results["leak"] = norm_leak(sizes, rank)
    results["ids"] = gather_ids(torch.arange(sizes[rank]) + 10 * rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def one_process(case: dict[str, Any], sizes: tuple[int, ...]) -> dict[str, Any]:
    views = global_views(sum(sizes), case.get("dtype", torch.float64))
    objective = build(**case)
    if not case.get("chunked") or case.get("fixed"):
        result = objective(*views, weights={"coincidence": 0.7})
        result.loss.backward()
        return state_of(objective, result)
    # Chunks with the same number share batch statistics over all workers; then all rows are joined in rank order.
    pieces = [halves(local(views, sizes, rank)) for rank in range(len(sizes))]
    encoded = []
    for number in range(2):
        merged = [torch.cat([piece[number][v] for piece in pieces]) for v in range(2)]
        h = objective.encode(*merged)
        counts = [len(piece[number][0]) for piece in pieces]
        encoded.append([view.split(counts) for view in h])
    in_order = [torch.cat([encoded[c][v][rank] for rank in range(len(sizes)) for c in range(2)]) for v in range(2)]
    result = objective.loss(*in_order, weights={"coincidence": 0.7})
    result.loss.backward()
    return state_of(objective, result)


def difference(actual: Tensor, expected: Tensor) -> float:
    actual = actual.double()
    expected = expected.double()
    return float(
        (actual - expected).norm() / expected.norm().clamp_min(1e-3)
    )  # some are 0: VICReg is invariant to shifts


def check(sizes: tuple[int, ...], folder: Path) -> None:
    torch.multiprocessing.spawn(worker, (sizes, str(folder)), nprocs=len(sizes))
    workers = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(sizes))]
    for name, case in CASES.items():
        expected = one_process(case, sizes)
        # In float32 so few rows amplify rounding errors; the exact check is in float64.
        tolerances = {"parts": 1e-5, "gradients": 1e-4, "buffers": 3e-6} if name == "float32" else {}
        for result in (outcome[name] for outcome in workers):
            for kind in ("parts", "gradients", "buffers"):
                assert result[kind].keys() == expected[kind].keys()
                for key, value in expected[kind].items():
                    assert difference(result[kind][key], value) < tolerances.get(kind, 1e-11), (
                        name,
                        kind,
                        key,
                    )
    for outcome in workers:
        torch.testing.assert_close(outcome["leak"][0], outcome["leak"][1], rtol=1e-10, atol=1e-12)
        assert outcome["ids"] == [10 * rank + row for rank, size in enumerate(sizes) for row in range(size)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_equal_one_process(tmp_path: Path) -> None:
    check(ROWS[2], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_workers_equal_one_process(tmp_path: Path) -> None:
    check(ROWS[4], tmp_path)


def test_local_statistics_would_leak() -> None:
    """What synchronised statistics prevent: local ones make h depend on the other local rows."""
    trunk: nn.Module = build().trunk
    (views,) = global_views(4, torch.float64)[:1]
    with torch.no_grad():
        alone = trunk(views[:2])
        together = trunk(views)[:2]
    assert difference(alone, together) > 0.01
