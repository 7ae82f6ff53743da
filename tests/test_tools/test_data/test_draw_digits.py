# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Digits as they are drawn."""

import pytest

pytest.importorskip('sklearn')

from sklearn.datasets import load_digits

from tools.data import draw_digits


@pytest.mark.parametrize('side', [8, 13.5, 40, 96])
@pytest.mark.parametrize('angle', [-25.0, 0.0, 25.0])
def test_drawn_digit_has_the_side_asked_for(side, angle):
    image = load_digits().images[7]
    alpha = draw_digits.render_digit(image, side, angle)
    x1, y1, x2, y2 = draw_digits.mask_box(alpha > 0.5)
    assert abs(max(x2 - x1, y2 - y1) - side) <= 1.5
    assert alpha.min() >= 0 and alpha.max() <= 1
