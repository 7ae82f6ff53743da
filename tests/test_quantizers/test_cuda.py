# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The fused kernels give what the plain chain gives, bit for bit."""

import pytest
import torch

from mmdet_ptq.quantizers.cuda import kernels, usable
from mmdet_ptq.quantizers.granularity import Granularity
from mmdet_ptq.quantizers.kernels import quantize_dequantize

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA'),
]


def tensors():
    torch.manual_seed(0)
    x = torch.randn(3, 8, 17, 5) * 3
    x.view(-1)[:6] = torch.tensor(
        [float('nan'), float('inf'), -float('inf'), 0.5, 1.5, 2.5]
    )
    yield 'dense', x
    yield 'channels_last', x.to(memory_format=torch.channels_last)
    yield 'permuted', x.permute(2, 1, 3, 0)
    yield 'gaps', torch.randn(3, 16, 17, 5)[:, ::2]
    yield 'half', x.half()
    yield 'bfloat16', x.bfloat16()


GRAINS = dict(
    tensor=Granularity(),
    channel=Granularity('channel', 1),
    group=Granularity('group', 1, 2),
)


@pytest.mark.parametrize('grain', GRAINS)
@pytest.mark.parametrize('name, x', tensors(), ids=lambda v: str(v)[:13])
@pytest.mark.parametrize('learned', [False, True])
@pytest.mark.parametrize('device', [pytest.param('cuda', marks=gpu)])
def test_as_on_the_cpu(name, x, grain, learned, device):
    granularity = GRAINS[grain]
    rows = granularity.num_rows(x.shape)
    scale = torch.rand(rows) + 0.1
    zero = torch.randint(0, 15, (rows,), dtype=torch.int32)
    found = []
    for where in ('cpu', device):
        leaf = x.to(where).requires_grad_(learned)
        s = scale.to(where).requires_grad_(learned)
        y = quantize_dequantize(leaf, s, zero.to(where), granularity, 0, 15)
        if learned:
            y.nan_to_num().sum().backward()
            found.append((y, leaf.grad, s.grad))
        else:
            found.append((y,))
        assert y.stride() == found[0][0].stride()
    assert kernels()
    for ours, theirs in zip(*found, strict=True):
        exact = ours.shape != scale.shape
        if exact:
            assert torch.equal(
                ours.nan_to_num(99), theirs.cpu().nan_to_num(99)
            )
        else:
            # the sum of a scale's gradient has another order
            torch.testing.assert_close(ours, theirs.cpu(), equal_nan=True)


def test_the_cpu_has_its_own():
    assert not usable(torch.zeros(2))
