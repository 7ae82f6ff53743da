# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the survey tells."""

from torch import nn

from mmdet_ptq.engine.survey import uncovered_modules


def test_what_no_twin_covers():
    model = nn.Sequential(
        nn.Conv3d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Embedding(3, 3)
    )
    model.append(nn.BatchNorm2d(2))
    assert uncovered_modules(model) == {'0': 'no twin for Conv3d'}
