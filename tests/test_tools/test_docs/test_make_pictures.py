# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the picture of the README shows."""

import pytest

from tools.docs import make_pictures
from tools.docs.make_which_recipe_doc import CONVOLUTIONAL, METRIC

LOW, HIGH = (0.4, 0.5, 0.3, 0.6), (0.5, 0.6, 0.5, 0.6)


def test_means_by_hand():
    cells = [
        dict(detector=d, recipe='a', bits='w4a4', quantized=q, float=f)
        for d, q, f in zip(CONVOLUTIONAL, LOW, HIGH, strict=True)
    ]
    zoo = [
        dict(detector=d, recipe='b', bits='w8a8', quantized={METRIC: f})
        for d, f in zip(CONVOLUTIONAL, HIGH, strict=True)
    ]
    whole, means = make_pictures.average_precision(cells, zoo)
    assert whole == pytest.approx(0.55)
    assert means == pytest.approx({('a', 'w4a4'): 0.45, ('b', 'w8a8'): 0.55})
    # of another recipe there is one detector only
    more = [*cells, dict(cells[0], recipe='c')]
    assert make_pictures.average_precision(more, zoo)[1] == means
