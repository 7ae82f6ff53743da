# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet_ptq.quantizers import pack, unpack


def naive(codes, bits):
    """Writes each code as digits, one after the other, into bytes."""
    text = ''.join(format(c, f'0{bits}b') for c in codes)
    text += '0' * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


@st.composite
def cases(draw):
    bits = draw(st.integers(1, 8))
    shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    codes = draw(
        st.lists(
            st.integers(0, 2**bits - 1),
            min_size=math.prod(shape),
            max_size=math.prod(shape),
        )
    )
    return bits, tuple(shape), codes


@settings(deadline=None, max_examples=150)
@given(cases())
def test_against_digits(case):
    bits, shape, codes = case
    tensor = torch.tensor(codes, dtype=torch.int32).reshape(shape)
    packed = pack(tensor, bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == naive(codes, bits)
    assert packed.numel() == math.ceil(len(codes) * bits / 8)
    found = unpack(packed, bits, shape)
    assert found.dtype == torch.int32
    assert torch.equal(found, tensor.cpu())


@pytest.mark.parametrize('bits', range(2, 9))
def test_every_code(bits):
    codes = torch.arange(2**bits)
    found = unpack(pack(codes, bits), bits, (2**bits,))
    assert torch.equal(found, codes.cpu())


def test_known_bytes():
    assert pack(torch.tensor([5, 2, 7]), 3).tolist() == [
        0b10101011,
        0b10000000,
    ]


def test_layout_in_memory_does_not_matter():
    codes = torch.arange(12).reshape(3, 4)
    turned = codes.t().contiguous().t()
    assert torch.equal(pack(turned, 4), pack(codes, 4))


@pytest.mark.parametrize('codes', [[-1], [16], [0, 300]])
def test_codes_out_of_range(codes):
    with pytest.raises(ValueError, match='do not fit 4 bits'):
        pack(torch.tensor(codes), 4)


def test_wrong_length():
    with pytest.raises(ValueError, match='2 bytes are not 5 codes of 4'):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, (5,))
