# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from mmdet_ptq.checks import (
    annotated,
    below_one,
    number,
    one_of,
    whole,
)


def test_what_is_allowed_comes_back():
    assert whole('n', 3, 3) == 3
    assert number('x', 0.5, 0, 1) == 0.5 and number('x', 1) == 1
    assert one_of('kind', 'a', ('a', 'b')) == 'a'


@pytest.mark.parametrize('value', [2, 3.0, True, '3', None])
def test_no_whole_number(value):
    with pytest.raises(ValueError, match='n must be a whole number from 3'):
        whole('n', value, 3)


@pytest.mark.parametrize('value', [-1, 2, True, '1', None, math.nan])
def test_no_number(value):
    with pytest.raises(ValueError, match='x must be a number from 0 to 1'):
        number('x', value, 0, 1)


def test_limits_left_out():
    with pytest.raises(ValueError, match='x must be a number above 0, got 0'):
        number('x', 0, above=True)
    with pytest.raises(ValueError, match='above 0 to 1, got 0'):
        number('x', 0, 0, 1, above=True)
    with pytest.raises(ValueError, match='of at least 2, got inf'):
        number('x', math.inf, 2)


def test_no_name():
    with pytest.raises(ValueError, match=r"unknown kind 'bb'.*mean 'ab'"):
        one_of('kind', 'bb', ('ab', 'xy'))


def test_below_one():
    assert below_one('x', 0) == 0 and below_one('x', 0.99) == 0.99
    for value, says in ((1, 'below 1, got 1'), (1.5, 'from 0 to 1'), ('', '')):
        with pytest.raises(ValueError, match=f'x must be.*{says}'):
            below_one('x', value)


@pytest.mark.parametrize(
    ('hint', 'fit', 'wrong', 'says'),
    [
        (bool, [True, False], ['no', 0, None], 'True or False'),
        (int, [3, -1], [True, 3.0, '3'], 'a whole number'),
        (float, [3, 0.5], [True, '0.5', math.nan, math.inf], 'a number'),
        (str, ['', 'a'], [3, None, ['a']], 'a string'),
        (dict, [{}], [[], None, 'a'], 'a dict'),
        (float | None, [None, 1], ['', True], 'a number or None'),
        (str | bool, ['auto', True], [1, None], 'a string or True or False'),
        (list[dict], [[], [{}], ({},)], [{}, 'ab', ['a'], None], 'of dicts'),
        (Sequence[float], [(1, 2.5), []], ['12', [1, 'a'], 3], 'of numbers'),
        (
            tuple[float, float],
            [(1, 2), [0.5, 1]],
            [(1,), (1, 2, 3), ('a', 2), 1],
            'a list of 2 numbers',
        ),
        (tuple[int, ...], [(), (1, 2, 3)], [(1.5,), 1], 'of whole numbers'),
        (list, [[1, 'a']], ['a', {}], 'a list of values'),
        (Any, [1, None, 'a', object()], [], ''),
        (Literal['a'], ['a', 3], [], ''),
    ],
)
def test_annotated_types(hint, fit, wrong, says):
    for value in fit:
        annotated('x', value, hint)
    for value in wrong:
        with pytest.raises(ValueError, match=f'^x must be .*{says}, got '):
            annotated('x', value, hint)
