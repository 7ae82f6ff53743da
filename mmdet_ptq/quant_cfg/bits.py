# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bit-widths as the papers write them (``w4a4s8``), and sizes of memory."""

import re
from typing import NamedTuple

from ..errors import QuantConfigError

MIN_BITS, MAX_BITS = 2, 8
_UNITS = {'': 1, 'KIB': 2**10, 'MIB': 2**20, 'GIB': 2**30, 'TIB': 2**40}
_UNITS |= {'B': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9, 'TB': 10**12}


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


def parse_bytes(text: str | int, where: str = 'cache') -> int:
    """Reads a size such as ``'4GiB'`` or ``1000000``.

    Raises:
        QuantConfigError: If it is no size.
    """
    found = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*', str(text))
    unit = found and _UNITS.get(found[2].upper())
    if isinstance(text, bool) or not found or unit is None:
        raise QuantConfigError(
            f"{where}: {text!r} is no size; write e.g. '4GiB', '500MB' or a "
            'number of bytes'
        )
    return int(float(found[1]) * unit)
