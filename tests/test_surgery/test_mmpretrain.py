# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""MMPretrain's attention, or modules with its names where it is missing."""

import importlib.util
import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional

NAMES = (
    'WindowMSA',
    'WindowMSAV2',
    'MultiheadAttention',
    'BEiTAttention',
    'ChannelMultiheadAttention',
)
WHERE = 'mmpretrain.models.utils.attention'


class Attention(nn.Module):
    """What all of them compute, with the biases of the second and fourth."""

    bias = 'qv_bias'

    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv = nn.Linear(8, 24, bias=False)
        self.q_bias = nn.Parameter(torch.randn(24))

    def forward(self, x):
        qkv = functional.linear(
            input=x, weight=self.qkv.weight, bias=self.q_bias
        )
        q, k, v = qkv.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


@pytest.fixture(scope='module')
def attention():
    if importlib.util.find_spec('mmpretrain'):
        yield importlib.import_module(WHERE)
        return
    parts = WHERE.split('.')
    paths = ['.'.join(parts[: i + 1]) for i in range(len(parts))]
    found = {path: ModuleType(path) for path in paths}
    for parent, child in pairwise(paths):
        setattr(found[parent], child.rpartition('.')[2], found[child])
    for name in NAMES:
        cls = type(name, (Attention,), dict(__module__=WHERE))
        setattr(found[WHERE], name, cls)
    sys.modules.update(found)
    yield found[WHERE]
    for path in found:
        del sys.modules[path]
    sys.modules.pop('mmdet_ptq.surgery.mmpretrain', None)


@torch.no_grad()
@pytest.mark.parametrize('name', ['WindowMSAV2', 'BEiTAttention'])
def test_products_and_borrowed_weight_become_layers(attention, name):
    from mmdet_ptq.surgery import decompose

    torch.manual_seed(0)
    cls = getattr(attention, name)
    if cls.__mro__[1] is not Attention:
        args = (8, (3, 3), 2) if 'V2' in name else (8, 2, (3, 3), False)
        one = cls(*args).eval()
    else:
        one = cls().eval()
    holder, x = nn.ModuleList([one]), torch.randn(1, 9, 8)
    expected = one(x)
    assert [e.module for e in decompose(holder)[0]] == ['0']
    called = []
    for part in ('qkv', 'matmul_qk', 'matmul_pv'):
        one.get_submodule(part).register_forward_hook(
            lambda *_, part=part: called.append(part)
        )
    torch.testing.assert_close(one(x), expected)
    assert called == ['qkv', 'matmul_qk', 'matmul_pv']


@pytest.mark.parametrize('name', NAMES)
def test_all_of_them_are_known(attention, name):
    from mmdet_ptq.surgery.parts import part_for

    module = object.__new__(getattr(attention, name))
    assert issubclass(part_for(module), getattr(attention, name))
