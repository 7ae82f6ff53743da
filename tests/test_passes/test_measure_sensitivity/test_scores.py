# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is lost of feature maps, classes and boxes."""

import pytest
import torch
from reconstruct_model import Net
from sensitivity_kit import at_the_end

from mmdet_ptq.errors import CalibrationError
from mmdet_ptq.losses import GlobalLoss
from mmdet_ptq.passes.measure_sensitivity import image_score
from mmdet_ptq.passes.measure_sensitivity.scores import (
    FeatureError,
    ImageScore,
)


class Maps(Net):
    """Backbone and neck as detectors of MMDetection have them."""

    def extract_feat(self, inputs):
        x = self.backbone(torch.stack(list(inputs)).float())
        return self.neck[0](x), self.neck[1](x[..., ::2, ::2])


def test_error_of_maps_by_hand():
    loss = FeatureError()
    exact = [torch.tensor([3.0, 4.0]), torch.tensor([2.0])]
    found = [torch.tensor([3.0, 5.0]), torch.tensor([1.0])]
    targets = loss.targets(exact)
    # 1 / 25 and 1 / 4
    assert float(loss(found, targets)) == pytest.approx(0.145)
    assert loss.parts(exact, targets) == {'feature.l2': 0.0}


def test_feature_sees_backbone_and_neck_alone():
    """The tower behind them changes nothing."""

    def look(session):
        with session.cache() as cache:
            score = image_score('feature', session, cache)
            found = score.total((j, score.run(j)) for j in score.images)
            session.layers['tower'].switch(False, False)
            again = score.total((j, score.run(j)) for j in score.images)
            session.layers['neck.0'].switch(False, False)
            less = score.total((j, score.run(j)) for j in score.images)
        return found, again, less

    found, again, less = at_the_end(look, net=Maps)
    assert found == again and found['score'] == found['error'] > 0
    assert less['score'] < found['score']


class _Parts(GlobalLoss):
    """Gives back what it is told to."""

    def __init__(self, told):
        super().__init__()
        self.told = told

    def targets(self, outputs):
        return []

    def __call__(self, outputs, targets):
        raise AssertionError

    def parts(self, outputs, targets):
        return self.told[outputs]


class _Given:
    mine = (0, 1)

    def targets(self, j):
        return [None]


def test_classes_and_boxes_of_all_heads_are_added():
    told = [
        {'rpn.ce': 1.0, 'rpn.box': 2.0, 'rpn.n_ce': 5, 'rpn.n_box': 5},
        {'a.ce': 4.0, 'a.box': 0.0, 'a.n_ce': 0, 'a.n_box': 0, 'b.ce': 1.0},
    ]
    score = ImageScore('output', _Given(), _Parts(told))
    found = score.total(enumerate([0, 1]))
    assert found == {'score': 4.0, 'class': 3.0, 'box': 1.0}


def test_a_detector_that_is_sure_of_nothing():
    told = [{'a.ce': 0.0, 'a.box': 0.0, 'a.n_ce': 0, 'a.n_box': 0}] * 2
    score = ImageScore('output', _Given(), _Parts(told))
    with pytest.raises(CalibrationError, match='no row a confidence'):
        score.total(enumerate([0, 1]))
