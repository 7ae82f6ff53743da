# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Checks of arguments, written once.

Each raises ``ValueError`` with the argument's name, what is allowed and what
was given; :func:`mmdet_ptq.registry.build_from` adds the place in
``quant_cfg``.
"""

import math
from collections.abc import Iterable

from .errors import unknown


def whole(name: str, value: object, low: int = 0) -> int:
    """Returns ``value`` if it is an int of at least ``low``.

    Raises:
        ValueError: If not; a bool is no int.
    """
    if type(value) is not int or value < low:
        raise ValueError(
            f'{name} must be a whole number from {low}, got {value!r}'
        )
    return value


def number(
    name: str,
    value: object,
    low: float = 0.0,
    high: float = math.inf,
    above: bool = False,
) -> float:
    """Returns ``value`` if it is a finite number within limits.

    Args:
        name (str): Name of the argument.
        value (object): What was given.
        low (float): Least allowed value.
        high (float): Greatest allowed value; may be infinite.
        above (bool): Whether ``low`` itself is not allowed.

    Raises:
        ValueError: If not; a bool is no number.
    """
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (low < value if above else low <= value)
        and value <= high
    )
    if fits:
        return value  # type: ignore[return-value]
    limits = f'above {low:g}' if above else f'of at least {low:g}'
    if math.isfinite(high):
        limits = f'{"above" if above else "from"} {low:g} to {high:g}'
    raise ValueError(f'{name} must be a number {limits}, got {value!r}')


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """Returns ``value`` if it is among the allowed names.

    Raises:
        ValueError: If not, with the nearest match.
    """
    names = list(allowed)
    if value not in names:
        raise ValueError(unknown(name, value, names))
    return value  # type: ignore[return-value]
