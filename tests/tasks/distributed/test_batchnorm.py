"""Conversion and the single-worker case; several workers are in test_parity."""

import torch
from torch import nn

from sepscene.tasks.distributed.batchnorm import SynchronisedBatchNorm, synchronise_batchnorm


def test_conversion_keeps_parameters_buffers_and_names() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, eps=1e-3, momentum=0.2), nn.Sequential(nn.BatchNorm2d(3)))
    before = dict(net.named_parameters()) | dict(net.named_buffers())
    converted = synchronise_batchnorm(net.eval())
    after = dict(converted.named_parameters()) | dict(converted.named_buffers())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [SynchronisedBatchNorm] * 2
    assert (norms[0].eps, norms[0].momentum, norms[0].training) == (1e-3, 0.2, False)
    assert isinstance(synchronise_batchnorm(nn.BatchNorm1d(2)), SynchronisedBatchNorm)


def test_one_worker_equals_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 2)
    plain = nn.BatchNorm2d(3)
    ours = synchronise_batchnorm(nn.BatchNorm2d(3))
    assert torch.equal(plain(x), ours(x))
    torch.testing.assert_close(dict(plain.named_buffers()), dict(ours.named_buffers()), rtol=0, atol=0)
    assert torch.equal(plain.eval()(x), ours.eval()(x))
