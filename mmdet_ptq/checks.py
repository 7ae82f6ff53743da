# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Checks of arguments, written once.

Each raises ``ValueError`` with the argument's name, what is allowed and what
was given; :func:`mmdet_ptq.registry.build_from` adds the place in
``quant_cfg``.
"""

import math
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from .errors import unknown

_LISTS = (list, tuple, Sequence)
#: of one, and of several
_NAMES = {
    bool: ('True or False', 'True or False'),
    int: ('a whole number', 'whole numbers'),
    float: ('a number', 'numbers'),
    str: ('a string', 'strings'),
    dict: ('a dict', 'dicts'),
}


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


def below_one(name: str, value: object) -> float:
    """Returns ``value`` if it is a number from 0 to below 1.

    Raises:
        ValueError: If not.
    """
    if number(name, value, 0, 1) == 1:
        raise ValueError(f'{name} must be below 1, got {value!r}')
    return value  # type: ignore[return-value]


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """Returns ``value`` if it is among the allowed names.

    Raises:
        ValueError: If not, with the nearest match.
    """
    names = list(allowed)
    if value not in names:
        raise ValueError(unknown(name, value, names))
    return value  # type: ignore[return-value]


def annotated(name: str, value: object, hint: Any) -> None:
    """Refuses a value that is not of an annotated type.

    A bool is no number and a string no list. A whole number is a number,
    and a tuple a list and the other way round, as configs have it.

    Args:
        name (str): Name of the argument.
        value (object): What was given.
        hint (Any): Its annotation; ``Any`` allows everything.

    Raises:
        ValueError: If it does not fit.
    """
    if not _fits(value, hint):
        raise ValueError(f'{name} must be {_words(hint)}, got {value!r}')


def is_list(hint: Any) -> bool:
    """Whether an annotation is that of a list, tuple or sequence."""
    return typing.get_origin(hint) in _LISTS or hint in _LISTS


def _fits(value: object, hint: Any) -> bool:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Any:
        return True
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is int:
        return type(value) is int
    if kind is float:
        real = type(value) is int or type(value) is float
        return real and math.isfinite(value)  # type: ignore[arg-type]
    if kind in _LISTS:
        fixed = _length(kind, inner)
        return (
            isinstance(value, list | tuple)
            and fixed in (None, len(value))
            and all(_fits(one, inner[0]) for one in value if inner)
        )
    return not isinstance(kind, type) or isinstance(value, kind)


def _length(kind: Any, inner: tuple) -> int | None:
    """How many items a list has; those of a tuple are all of one type."""
    return (
        len(inner)
        if kind is tuple and inner and inner[-1] is not ...
        else None
    )


def _words(hint: Any) -> str:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return ' or '.join(map(_words, inner))
    if kind is types.NoneType:
        return 'None'
    if kind in _LISTS:
        many = _length(kind, inner)
        items = _NAMES.get(inner[0] if inner else None, ('', 'values'))[1]
        return f'a list of {f"{many} " if many else ""}{items}'
    return _NAMES[kind][0] if kind in _NAMES else f'a {kind.__name__}'
