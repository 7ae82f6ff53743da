# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Samples of positions."""

import pytest
import torch

from mmdet_ptq.observers import sample_tokens


def numbered(*shape, axis):
    """A map that holds, in all C channels, the number of the position."""
    count = torch.zeros(shape).select(axis, 0).numel()
    place = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    x = torch.arange(count).float().reshape(place).unsqueeze(axis)
    x = x + count * torch.arange(shape[axis]).reshape(
        [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    )
    return x, count


@pytest.mark.parametrize(
    ('shape', 'axis'), [((2, 5, 3, 4), 1), ((2, 12, 5), -1), ((24, 5), -1)]
)
def test_few_positions_are_all_taken(shape, axis):
    x, count = numbered(*shape, axis=axis)
    assert count == 24
    for limit in (24, 1000):
        tokens, weight = sample_tokens(x, axis, limit)
        assert weight == 1
        expected = torch.arange(24.0)[:, None] + 24 * torch.arange(5)
        assert torch.equal(tokens, expected)
    assert len(sample_tokens(x, axis, 23)[0]) == 12


@pytest.mark.parametrize('limit', [1, 7, 100, 512])
@pytest.mark.parametrize(
    ('shape', 'axis'), [((2, 3, 16, 32), 1), ((4, 256, 3), -1)]
)
def test_every_stratum_is_hit_once(shape, axis, limit):
    x, count = numbered(*shape, axis=axis)
    tokens, weight = sample_tokens(x, axis, limit)
    assert weight == -(-count // limit)
    assert tokens.shape == (count // weight, 3)
    assert limit / 2 <= len(tokens) <= limit
    strata = tokens[:, 0] // weight
    assert torch.equal(strata, torch.arange(len(tokens)).float())
    # whole positions: channels belong together
    offsets = tokens - tokens[:, :1]
    assert torch.equal(offsets[0], count * torch.arange(3.0))
    assert torch.equal(offsets, offsets[:1].expand_as(offsets))
    if weight > 1 and len(tokens) > 20:
        # and not always the same place in a stratum
        assert len((tokens[:, 0] % weight).unique()) > 1


def test_strides_do_not_matter():
    x = torch.randn(2, 6, 31, 17)
    tokens, weight = sample_tokens(x, 1, 50)
    last = x.contiguous(memory_format=torch.channels_last)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    moved = x.movedim(1, -1)
    for same, axis in ((last, 1), (turned, 1), (moved, -1)):
        again, other = sample_tokens(same, axis, 50)
        assert torch.equal(again, tokens) and other == weight
    assert torch.equal(sample_tokens(moved.contiguous(), 3, 50)[0], tokens)


def test_a_limit_that_is_none():
    with pytest.raises(ValueError, match='limit'):
        sample_tokens(torch.zeros(1, 2), -1, 0)
