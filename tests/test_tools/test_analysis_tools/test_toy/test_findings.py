# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Verdicts of the toy study."""

import pytest

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')

from tools.analysis_tools.toy import findings


def test_half_strength():
    half = findings.half_strength
    sigmas = [0.0, 0.1, 1.0, 10.0]
    rows = dict(skill=[[0.8], [0.8], [0.6], [0.2]])
    assert half(sigmas, rows) == pytest.approx(10**0.5)
    assert half(sigmas, dict(skill=[[0.8], [0.1], [0], [0]])) == 0.1
    assert half(sigmas, dict(skill=[[0.8]] * 4)) is None


def test_chosen():
    curves = dict(a=[[[3, 1, 2]], [[0, 5, 5]]], b=[[[7, 8, 9]], [[4, 6, 2]]])
    chosen = findings.chosen
    assert chosen(curves, 'a', 'b', 'min').tolist() == [[8, 4], [7, 2]]
    assert chosen(curves, 'a', 'b', 'max').tolist() == [[8, 4], [9, 6]]
