# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bit-widths as the papers write them: ``w4a4``, ``w4a8``, ``w4a4s8``."""

import re
from typing import NamedTuple

from ..errors import QuantConfigError

MIN_BITS, MAX_BITS = 2, 8


class Bits(NamedTuple):
    """Bit-widths of weights, activations and attention softmax."""

    weight: int
    act: int
    softmax: int

    def __str__(self) -> str:
        tail = f's{self.softmax}' if self.softmax != self.act else ''
        return f'w{self.weight}a{self.act}{tail}'


def parse_bits(text: str) -> Bits:
    """Reads a bit-width string.

    Args:
        text (str): ``wXaY`` or ``wXaYsZ``, each number 2 to 8; without
            ``s`` the softmax has the bits of the activations.

    Returns:
        Bits: The numbers.

    Raises:
        QuantConfigError: On any other text.

    Examples:
        >>> parse_bits('w4a8')
        Bits(weight=4, act=8, softmax=8)
        >>> str(parse_bits('w4a4s8'))
        'w4a4s8'
    """
    match = re.fullmatch(r'w(\d+)a(\d+)(?:s(\d+))?', str(text).lower())
    if match is None:
        raise QuantConfigError(
            f"bits {text!r}: expected e.g. 'w4a4', 'w8a8' or 'w4a4s8' "
            '(s = attention softmax)'
        )
    weight, act = int(match[1]), int(match[2])
    bits = Bits(weight, act, int(match[3]) if match[3] else act)
    for number in bits:
        check_bits(number, f'bits {text!r}')
    return bits


def check_bits(bits: object, where: str) -> int:
    """Returns ``bits`` if it is an int of 2 to 8.

    Raises:
        QuantConfigError: If not; the message starts with ``where``.
    """
    if (
        isinstance(bits, bool)
        or not isinstance(bits, int)
        or not (MIN_BITS <= bits <= MAX_BITS)
    ):
        raise QuantConfigError(
            f'{where}: {bits!r} is not a bit-width; allowed are whole '
            f'numbers from {MIN_BITS} to {MAX_BITS}. Use skip=True (or '
            'weight=None, act=None) in a rule to keep a layer float.'
        )
    return bits
