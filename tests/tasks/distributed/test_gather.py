"""Without a process group the gather is the identity; with one, see test_parity."""

import torch

from sepscene.tasks.distributed.gather import gather_counts, gather_ids, gather_rows, rank, sum_over_workers, world_size


def test_one_worker_is_the_global_batch() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    gathered = gather_rows(rows)
    gathered.square().sum().backward()
    assert (world_size(), rank(), gather_counts(3, rows.device)) == (1, 0, [3])
    assert torch.equal(gathered, rows)
    assert rows.grad is not None and torch.equal(rows.grad, 2 * rows.detach())
    assert gather_ids(torch.tensor([4, 7])) == [4, 7]


def test_sums_for_the_log_are_copies_without_a_graph() -> None:
    value = torch.ones(2, requires_grad=True)
    total = sum_over_workers(value)
    assert not total.requires_grad and total.data_ptr() != value.data_ptr()
