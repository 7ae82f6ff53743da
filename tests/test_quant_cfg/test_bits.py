# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Words for widths."""

import pytest

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg.bits import Bits, parse_bits, parse_bytes


@pytest.mark.parametrize(
    ('text', 'bits', 'back'),
    [
        ('w4a4', (4, 4, 4), 'w4a4'),
        ('w4a8', (4, 8, 8), 'w4a8'),
        ('W2A3S8', (2, 3, 8), 'w2a3s8'),
        ('w4a8s8', (4, 8, 8), 'w4a8'),
    ],
)
def test_bits(text, bits, back):
    assert parse_bits(text) == Bits(*bits)
    assert str(parse_bits(text)) == back


@pytest.mark.parametrize(
    'text',
    ['w1a8', 'w8a9', 'w4a4s1', 'a4w4', 'w4', 'w4a4 ', '', 8, None, 'w-4a4'],
)
def test_bad_bits(text):
    with pytest.raises(QuantConfigError, match='bit'):
        parse_bits(text)


def test_sizes():
    assert parse_bytes('4GiB') == 4 * 2**30
    assert parse_bytes('1.5 MB') == 1500000
    assert parse_bytes(123) == 123
    for wrong in ('4 apples', '-1GiB', '', True):
        with pytest.raises(QuantConfigError, match='no size'):
            parse_bytes(wrong)
