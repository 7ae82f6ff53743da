# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import math

import pytest

from mmdet_ptq.checks import number, one_of, whole


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
