# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a call of a quantizer asks of a device."""

from collections import Counter

import pytest
import torch
from crossings import crossings
from promises import FACTORIES, fit
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.quantizers.capabilities import (
    LearnsEnds,
    LearnsStep,
    LearnsTable,
)
from mmdet_ptq.quantizers.granularity import Granularity
from mmdet_ptq.quantizers.kernels import quantize_dequantize, to_dtype

LEARN = {
    LearnsStep: lambda q, on: q.learn_step(on),
    LearnsEnds: lambda q, on: q.learn_ends(on),
    LearnsTable: lambda q, on: q.learn_table(on),
}


class Operators(TorchDispatchMode):
    """Counts operations by name; views too, which launch nothing."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('make', FACTORIES.values(), ids=FACTORIES)
def test_no_quantizer_makes_a_gpu_wait(make):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 4)
    q = fit(make(4), x)
    with torch.no_grad(), crossings() as found:
        q(x)
    assert not found
    x.requires_grad_()
    for kind, learn in LEARN.items():
        if isinstance(q, kind):
            learn(q, True)
            with crossings() as found:
                q(x).sum().backward()
            assert not found
            learn(q, False)


@pytest.mark.parametrize('low', [[0.0], [[0.0]]], ids=str)
def test_what_goes_before_and_after_the_chain(low):
    q = UniformQuantizer(8, per_level=True)
    q.set_range(torch.tensor(low), torch.tensor(low) + 1)
    with torch.no_grad(), Operators() as seen:
        q(torch.rand(2, 3, 4, 5))
    for name in ('_to_copy', 'select', 'clone', 'detach'):
        # the zero point's cast is part of the CPU's chain
        assert seen.found[name] == (1 if name == '_to_copy' else 0)


@pytest.mark.parametrize('size', [1, 2])
def test_scales_are_repeated_on_the_cpu_alone(size):
    """Elsewhere they broadcast; groups of one need no repeating at all."""
    x = torch.randn(2, 6, 3, 4, device='cpu')
    x = x.contiguous(memory_format=torch.channels_last)
    grain = Granularity('group', 1, size)
    scale = torch.rand(6 // size, device='cpu') + 0.1
    zero = torch.arange(6 // size, device='cpu').int()
    expected = torch.fake_quantize_per_channel_affine(
        x, scale.repeat_interleave(size), zero.repeat_interleave(size), 1, 0, 7
    )
    found = quantize_dequantize(x, scale, zero, grain, 0, 7)
    # which multiplies by 1 / scale
    torch.testing.assert_close(found, expected)
    meta = [t.to('meta') for t in (x, scale, zero)]
    with Operators() as seen:
        y = quantize_dequantize(*meta, grain, 0, 7)
    assert y.shape == x.shape and y.stride() == x.stride()
    assert not seen.found['repeat_interleave'] and not seen.found['clone']
    with Operators() as seen:
        quantize_dequantize(x, scale, zero, grain, 0, 7)
    # repeating is an expansion and its copy
    assert seen.found['clone'] == (0 if size == 1 else 2)


def test_groups_that_broadcast_learn_as_those_that_are_repeated():
    """The way of a GPU, by hand, against that of a CPU."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 4, requires_grad=True)
    scale = (torch.rand(3) + 0.1).requires_grad_()
    zero = torch.tensor([0, 3, 7], dtype=torch.int32)
    grain = Granularity('group', 1, 2)
    y = quantize_dequantize(x, scale, zero, grain, 0, 7)
    apart = Granularity('channel', 1)
    z = quantize_dequantize(x.unflatten(1, (3, 2)), scale, zero, apart, 0, 7)
    assert torch.equal(y, z.flatten(1, 2))
    slope = torch.randn(y.shape)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, scale), slope),
        torch.autograd.grad(z, (x, scale), slope.unflatten(1, (3, 2))),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_cast_to_its_own_dtype_is_nothing():
    for dtype in (torch.float32, torch.float16):
        x = torch.zeros(2, dtype=dtype)
        assert to_dtype(x, dtype) is x
