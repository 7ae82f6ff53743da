# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The fused kernels give what the plain chain gives, bit for bit."""

import pytest
import torch

from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.quantizers.cuda import bits_of, kernel, usable
from mmdet_ptq.quantizers.granularity import Granularity
from mmdet_ptq.quantizers.kernels import quantize_dequantize

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA'),
]
on_gpu = pytest.mark.parametrize(
    'device', [pytest.param('cuda', marks=needs_gpu)]
)


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
    yield 'expanded', torch.randn(3, 8, 1, 5).expand(3, 8, 17, 5)
    yield 'two axes', torch.randn(5, 8) * 3
    yield 'half', x.half()
    yield 'bfloat16', x.bfloat16()
    yield 'double', x.double()


GRAINS = dict(
    tensor=Granularity(),
    channel=Granularity('channel', 1),
    groups_of_1=Granularity('group', 1, 1),
    groups_of_2=Granularity('group', 1, 2),
    within=Granularity('group', 1, 5, within=True),
)


@pytest.mark.parametrize('grain', GRAINS)
@pytest.mark.parametrize('name, x', tensors(), ids=lambda v: str(v)[:13])
@pytest.mark.parametrize('learned', [False, True])
@on_gpu
def test_as_on_the_cpu(name, x, grain, learned, device):
    granularity = GRAINS[grain]
    rows = granularity.num_rows(x.shape)
    scale = torch.rand(rows) + 0.1
    zero = torch.randint(0, 15, (rows,), dtype=torch.int32)
    found = []
    for where in ('cpu', device):
        leaf = x.detach().to(where, copy=True).requires_grad_(learned)
        s = scale.detach().to(where, copy=True).requires_grad_(learned)
        y = quantize_dequantize(leaf, s, zero.to(where), granularity, 0, 15)
        assert y.shape == x.shape and y.dtype == x.dtype
        if learned:
            y.nan_to_num().sum().backward()
            found.append((y, leaf.grad, s.grad))
        else:
            found.append((y,))
        if granularity.kind == 'tensor':
            assert y.stride() == found[0][0].stride()
    for ours, theirs in zip(*found, strict=True):
        theirs = theirs.detach().cpu()
        if ours.shape == x.shape:
            assert torch.equal(ours.nan_to_num(99), theirs.nan_to_num(99))
            # the sign of NaN says nothing
            signs = (t.nan_to_num(99).signbit() for t in (ours, theirs))
            assert torch.equal(*signs)
        else:
            # the sum of a scale's gradient has another order
            torch.testing.assert_close(ours, theirs, equal_nan=True)


@on_gpu
def test_a_call_is_one_kernel(device):
    """Of a range for each pyramid level too."""
    for low in (torch.zeros(1), torch.zeros(1, 1), torch.zeros(3, 1)):
        q = UniformQuantizer(8, per_level=True).to(device)
        q.set_range(low, low + 1)
        x = torch.rand(2, 3, 8, 8, device=device)
        q(x)
        with torch.no_grad(), torch.profiler.profile() as found:
            q(x)
            torch.cuda.synchronize()
        launched = [
            e.name
            for e in found.events()
            if e.device_type == torch.autograd.DeviceType.CUDA
        ]
        assert len(launched) == 1 and 'fake_quantize' in launched[0]


@on_gpu
@pytest.mark.parametrize(
    'name', ['fake_quantize', 'input_gradient', 'scale_gradient']
)
def test_every_kernel_works(name, device):
    assert kernel(name) is not None


@on_gpu
def test_who_looks_at_operations_sees_them(device):
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(2, device=device)
    assert usable(x, 'fake_quantize')
    with FlopCounterMode(display=False):
        assert not usable(x, 'fake_quantize')


def test_the_cpu_has_its_own():
    assert not usable(torch.zeros(2), 'fake_quantize')


def test_the_bits_of_a_zero_point():
    zero = torch.tensor([-128, -1, 0, 7, 255], dtype=torch.int32)
    seen = bits_of(zero)
    assert seen.dtype == torch.float32
    assert seen.data_ptr() == zero.data_ptr()
    assert seen.view(torch.int32).tolist() == zero.tolist()
