# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Decomposed attention computes what the original computes."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.backbones.swin import ShiftWindowMSA
from torch import nn

from mmdet_ptq.layers import MatMul
from mmdet_ptq.surgery import (
    SplitMultiheadAttention,
    SplitWindowMSA,
    decompose,
)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def split_copy(module):
    twin = copy.deepcopy(module)
    holder = nn.ModuleList([twin])
    assert decompose(holder)[1] == {}
    return holder[0]


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dims', [{}, dict(kdim=6, vdim=10)])
@pytest.mark.parametrize('mask', ['none', 'bool', 'float', 'per_head'])
def test_multihead_attention(batch_first, bias, dims, mask):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(
        16, 4, 0.5, bias=bias, batch_first=batch_first, **dims
    ).eval()
    if bias:
        nn.init.normal_(mha.in_proj_bias)
        nn.init.normal_(mha.out_proj.bias)
    n, length, source = 2, 5, 7
    q = torch.randn(n, length, 16)
    k = torch.randn(n, source, dims.get('kdim', 16))
    v = torch.randn(n, source, dims.get('vdim', 16))
    padding = torch.zeros(n, source, dtype=torch.bool)
    padding[1, 5:] = True
    attn = {
        'none': None,
        'bool': torch.rand(length, source) > 0.8,
        'float': torch.randn(length, source),
        'per_head': torch.randn(n * 4, length, source),
    }[mask]
    if attn is not None and attn.dtype != torch.bool:
        padding = torch.zeros(n, source).masked_fill(padding, float('-inf'))
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    args = dict(key_padding_mask=padding, attn_mask=attn)
    expected, weights = mha(q, k, v, **args)
    out, found = split_copy(mha)(q, k, v, **args)
    close(out, expected)
    close(found, weights)


def test_multihead_attention_unbatched_and_weights():
    torch.manual_seed(1)
    mha = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    twin = split_copy(mha)
    q, k = torch.randn(3, 8), torch.randn(4, 8)
    expected, weights = mha(q, k, k, average_attn_weights=False)
    out, found = twin(q, k, k, average_attn_weights=False)
    close(out, expected)
    close(found, weights)
    assert twin(q, k, k, need_weights=False)[1] is None


@pytest.mark.parametrize('dims', [{}, dict(kdim=6, vdim=10)])
def test_state_dict_keys_stay(dims):
    mha = nn.MultiheadAttention(16, 4, **dims)
    other = nn.MultiheadAttention(16, 4, **dims)
    twin = split_copy(mha)
    before, after = mha.state_dict(), twin.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not twin.load_state_dict(other.state_dict()).missing_keys
    close(
        twin.v_proj.weight,
        other.v_proj_weight if dims else other.in_proj_weight[32:],
    )


def test_projections_are_called_as_modules():
    """The reason for all this: hooks on out_proj see every forward."""
    attention = MultiheadAttention(16, 4).eval()
    x = torch.randn(5, 2, 16)
    expected = attention(x)
    assert decompose(attention)[1] == {}
    assert isinstance(attention.attn, SplitMultiheadAttention)
    called = []
    for name, module in attention.named_modules():
        if type(module) in (nn.Linear, MatMul):
            module.register_forward_hook(
                lambda *_, name=name: called.append(name)
            )
    close(attention(x), expected)
    assert called == [
        'attn.q_proj',
        'attn.k_proj',
        'attn.v_proj',
        'attn.matmul_qk',
        'attn.matmul_pv',
        'attn.out_proj',
    ]


@pytest.mark.parametrize('more', ['add_bias_kv', 'add_zero_attn'])
def test_refuses_more_keys(more):
    holder = nn.ModuleList([nn.MultiheadAttention(8, 2, **{more: True})])
    assert 'bias_k' in decompose(holder)[1]['0']
    assert type(holder[0]) is nn.MultiheadAttention


@pytest.mark.parametrize('shift', [0, 3])
@pytest.mark.parametrize('size', [(14, 14), (9, 16)])
def test_window_attention(shift, size):
    torch.manual_seed(0)
    swin = ShiftWindowMSA(24, 3, window_size=7, shift_size=shift).eval()
    nn.init.normal_(swin.w_msa.relative_position_bias_table)
    x = torch.randn(2, size[0] * size[1], 24)
    keys = list(swin.state_dict())
    expected = swin(x, size)
    decompose(swin)
    assert isinstance(swin.w_msa, SplitWindowMSA)
    close(swin(x, size), expected)
    assert list(swin.state_dict()) == keys
