# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Features and positional encodings, projected apart."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import nn

from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import PositionLinear
from mmdet_ptq.surgery import (
    PositionsSplit,
    decompose,
    edits_of,
    positions_used,
)


def attention(batch_first=True):
    torch.manual_seed(0)
    found = MultiheadAttention(16, 4, batch_first=batch_first).eval()
    nn.init.normal_(found.attn.in_proj_bias)
    return nn.ModuleDict(dict(attention=found))


def given(batch_first=True):
    rng = torch.Generator().manual_seed(1)

    def draw(length):
        shape = (2, length, 16) if batch_first else (length, 2, 16)
        return torch.randn(shape, generator=rng)

    return dict(
        query=draw(5),
        key=draw(7),
        value=draw(7),
        query_pos=draw(5),
        key_pos=draw(7),
    )


def split(model, *args):
    decompose(model)
    PositionsSplit('attention', *args).apply(model)
    return model['attention']


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize(
    'left_out', [(), ('query_pos',), ('key_pos',), ('query_pos', 'key_pos')]
)
def test_it_attends_as_before(batch_first, left_out):
    plain = attention(batch_first)['attention']
    ours = split(attention(batch_first))
    inputs = {k: v for k, v in given(batch_first).items() if k not in left_out}
    inputs['key_padding_mask'] = torch.zeros(2, 7, dtype=torch.bool)
    inputs['key_padding_mask'][1, 5:] = True
    torch.testing.assert_close(
        ours(**inputs), plain(**inputs), rtol=1e-5, atol=1e-6
    )


def test_queries_give_the_keys_their_encoding():
    """As MMCV does where only queries have one and it fits."""
    plain, ours = attention()['attention'], split(attention())
    one = given()
    x, pos = one['query'], one['query_pos']
    expected = plain(x, query_pos=pos)
    torch.testing.assert_close(ours(x, query_pos=pos), expected)
    assert not torch.allclose(expected, plain(x), atol=1e-3)


def test_the_projection_of_features_sees_features_alone():
    ours, seen = split(attention()), {}
    for name, module in ours.attn.named_children():
        module.register_forward_hook(
            lambda _, args, out, name=name: seen.update({name: args[0]})
        )
    inputs = given()
    ours(**inputs)
    assert isinstance(ours.attn.q_pos, PositionLinear)
    for name, value in dict(
        q_proj='query',
        k_proj='key',
        v_proj='value',
        q_pos='query_pos',
        k_pos='key_pos',
    ).items():
        assert torch.equal(seen[name], inputs[value]), name


def test_rebuilt_it_takes_the_numbers_of_another():
    one, other = attention(), attention()
    edit = PositionsSplit('attention', keys=False)
    decompose(one)
    edit.apply(one)
    decompose(other)
    (again,) = edits_of([edit.to_dict()])
    again.rebuild(other)
    assert not hasattr(other['attention'].attn, 'k_pos')
    other.load_state_dict(one.state_dict())
    inputs = {k: v for k, v in given().items() if k != 'key_pos'}
    assert torch.equal(
        other['attention'](**inputs), one['attention'](**inputs)
    )


def test_which_have_encodings():
    model = nn.ModuleDict(
        dict(
            both=attention()['attention'],
            queries=attention()['attention'],
            none=attention()['attention'],
        )
    )
    decompose(model)
    one = given()

    def forward():
        model['both'](one['query'], query_pos=one['query_pos'])
        model['queries'](one['query'], one['key'], query_pos=one['query_pos'])
        model['none'](one['query'])

    with pytest.warns(UserWarning, match='position encoding of key'):
        found = positions_used(model, forward)
    assert found == dict(both=(True, True), queries=(True, False))
    assert not any(m._forward_pre_hooks for m in model.modules())


class Attending(MultiheadAttention):
    """One of a user's own, which may compute anything."""


@pytest.mark.parametrize('kind', [Attending, None])
def test_what_cannot_be_split(kind):
    model = attention()
    if kind is not None:
        decompose(model)
        model['attention'].__class__ = kind
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PTQError, match=r"^'attention' is no attention of"):
        PositionsSplit('attention').apply(model)
    assert list(model.state_dict()) == list(before)
