# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Encodings by hand: what exporters and the artefact read."""

import dataclasses

import pytest
import torch

from mmdet_ptq.errors import CalibrationError
from mmdet_ptq.quantizers import (
    Granularity,
    LLAQuantizer,
    SubsetQuantizer,
    TableEncoding,
    UniformEncoding,
    UniformQuantizer,
)


def uniform(scale, zero, qmin, qmax, bits=2, **grain):
    return UniformEncoding(
        bits,
        Granularity(**grain),
        torch.tensor(scale),
        torch.tensor(zero, dtype=torch.int32),
        qmin,
        qmax,
    )


def table(values, bounds, bits=2, **grain):
    return TableEncoding(
        bits, Granularity(**grain), torch.tensor(values), torch.tensor(bounds)
    )


def test_zero_points_per_channel():
    e = uniform([1.0, 0.5], [1, 3], 0, 3, kind='channel', axis=1)
    x = torch.tensor([[-9.0, -9.0], [-0.5, -0.75], [1.5, -0.25], [9.0, 9.0]])
    # half to even: -0.5 -> 0, -1.5 -> -2, 1.5 -> 2, -0.5 -> 0
    codes = e.encode(x)
    assert codes.tolist() == [[0, 0], [1, 1], [3, 3], [3, 3]]
    assert codes.dtype == torch.int32
    y = [[-1.0, -1.5], [0.0, -1.0], [2.0, 0.0], [2.0, 0.0]]
    assert e.decode(codes).tolist() == y
    assert e.decode(codes.to(torch.uint8)).tolist() == y


def test_grid_of_one_side():
    # unsigned without a zero point, as runtimes have it after ReLU
    e = uniform([0.5], [0], 0, 3)
    codes = e.encode(torch.tensor([-1.0, 0.2, 0.75, 5.0]))
    assert codes.tolist() == [0, 0, 2, 3]
    assert e.decode(codes).tolist() == [0, 0, 1, 1.5]


def test_symmetric_codes_are_packed_from_the_lowest():
    e = uniform([1.0], [0], -2, 1)
    codes = e.encode(torch.tensor([-9.0, -1.0, 0.0, 9.0]))
    assert codes.tolist() == [-2, -1, 0, 1]
    packed = e.pack(codes)
    assert packed.tolist() == [0b00011011]
    assert e.unpack(packed, (2, 2)).tolist() == [[-2, -1], [0, 1]]
    with pytest.raises(ValueError, match='do not fit 2 bits'):
        e.pack(codes + 1)
    with pytest.raises(ValueError, match='1 bytes are not 5 codes'):
        e.unpack(packed, (5,))


def test_groups_within_a_channel():
    grain = dict(kind='group', axis=0, group_size=2, within=True)
    e = uniform([1.0, 2.0, 4.0, 8.0], [0] * 4, -2, 1, **grain)
    x = torch.full((2, 4), 4.0)
    assert e.encode(x).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    scale, zero = e.expanded(x.shape)
    assert scale.tolist() == [[1, 1, 2, 2], [4, 4, 8, 8]]
    assert zero.shape == x.shape
    with pytest.raises(ValueError, match='4 scales do not fit'):
        e.encode(torch.ones(2, 6))


def test_table_of_each_row():
    e = table(
        [[-1.0, 0.0, 4.0], [0.0, 1.0, 2.0]],
        [[-0.5, 2.0], [0.5, 1.5]],
        kind='channel',
        axis=0,
    )
    x = torch.tensor([[-9.0, -0.5, 1.9, 2.0], [0.4, 0.5, 1.5, 9.0]])
    codes = e.encode(x)  # a bound belongs to the code above it
    assert codes.tolist() == [[0, 1, 1, 2], [0, 1, 2, 2]]
    assert codes.dtype == torch.int32
    assert e.decode(codes).tolist() == [[-1, 0, 0, 4], [0, 1, 2, 2]]
    assert e.unpack(e.pack(codes), codes.shape).tolist() == codes.tolist()
    with pytest.raises(ValueError, match='2 rows do not fit'):
        e.encode(torch.ones(3, 2))
    with pytest.raises(ValueError, match='2 rows do not fit'):
        e.decode(torch.ones(3, 2, dtype=torch.int32))


def test_one_row_of_a_table_serves_all():
    e = table([[0.0, 1.0]], [[0.5]], kind='channel', axis=1)
    x = torch.tensor([[0.2, 0.7], [0.6, 0.1]])
    assert e.decode(e.encode(x)).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: uniform([[1.0]], [[0]], 0, 3), 'of shape'),
        (lambda: uniform([1.0], [0, 0], 0, 3), 'of shape'),
        (lambda: uniform([1.0], [0], 0, 4), 'codes from 0 to 4'),
        (lambda: uniform([1.0], [0], 3, 3), 'codes from 3 to 3'),
        (lambda: table([[0.0, 1.0]], [[0.5], [0.5]]), 'does not fit'),
        (lambda: table([[0.0, 1.0]], [[0.5, 0.7]]), 'does not fit'),
        (lambda: table([[0.0] * 5], [[0.5]]), '2 bits'),
    ],
)
def test_what_is_no_encoding(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_is_frozen():
    q = UniformQuantizer(4)
    q.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    e = q.encoding()
    x = torch.linspace(-1, 1, 9)
    before = e.encode(x)
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.qmin = 3
    other = UniformQuantizer(4)
    other.set_range(torch.tensor([-1.0]), torch.tensor([9.0]))
    q.load_state_dict(other.state_dict())  # writes in place
    assert torch.equal(e.encode(x), before)
    assert not torch.equal(q.encode(x), before)
    q.learn_step()
    e = q.encoding()
    assert not e.scale.requires_grad
    q.scale.data *= 2
    assert q.encoding().scale == 2 * e.scale


def test_each_level_has_its_own():
    q = UniformQuantizer(2, per_level=True)
    q.set_range(torch.zeros(2, 1), torch.tensor([[3.0], [6.0]]))
    assert [q.encoding(level=i).scale.item() for i in (0, 1)] == [1, 2]
    with pytest.raises(IndexError, match='level 2'):
        q.encoding(level=2)
    assert q.num_rows() == 2


@pytest.mark.parametrize('symmetric', [False, True])
def test_ends_that_are_being_learned(symmetric):
    torch.manual_seed(0)
    q = UniformQuantizer(3, symmetric, 'channel')
    q.set_range(-torch.rand(4), torch.rand(4))
    q.learn_ends()
    q.low.data -= torch.rand(4) / 4
    q.high.data += torch.rand(4) / 4
    x = torch.randn(5, 4)
    e = q.encoding(x)
    assert torch.equal(e.decode(e.encode(x)), q(x).detach())


@pytest.mark.parametrize(
    'make', [UniformQuantizer, LLAQuantizer, SubsetQuantizer]
)
def test_without_parameters(make):
    assert make(4).num_rows() == 0
    with pytest.raises(CalibrationError, match='calibrate'):
        make(4).encoding()


@pytest.mark.parametrize(
    'codes, message',
    [
        ([0.0, 1.0], 'codes are integers, got torch.float32'),
        ([float('nan')], 'codes are integers, got torch.float32'),
        ([True, False], 'codes are integers, got torch.bool'),
        ([-2, 0], r'from -2 to 0 do not fit 2 bits of codes from -1 to 1'),
        ([0, 2], r'from 0 to 2 do not fit 2 bits of codes from -1 to 1'),
    ],
)
def test_what_is_no_code_is_not_packed(codes, message):
    narrow = uniform([1.0], [0], -1, 1)
    with pytest.raises(ValueError, match=message):
        narrow.pack(torch.tensor(codes))


def test_codes_of_a_table_end_with_it():
    three = table([[-1.0, 0.0, 1.0]], [[-0.5, 0.5]])
    with pytest.raises(ValueError, match='from 0 to 2'):
        three.pack(torch.tensor([3]))
    assert three.pack(torch.tensor([2, 0])).tolist() == [0b10000000]


def test_floats_are_not_decoded():
    x = torch.tensor([0.5])
    for e in (uniform([1.0], [0], -1, 1), table([[0.0, 1.0]], [[0.5]])):
        with pytest.raises(ValueError, match='codes are integers'):
            e.decode(x)
        with pytest.raises(ValueError, match='packed codes are uint8'):
            e.unpack(x, (4,))
