# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the survey tells."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn
from two_levels import PASSES, RULES, batches

from mmdet_ptq import quantize_detector
from mmdet_ptq.engine.survey import survey_detector, uncovered_modules
from mmdet_ptq.errors import CalibrationError, PTQError

CONFIG = dict(rules=RULES, passes=PASSES, bits='w8a8')


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Conv2d(4, 4, 1)

    def forward(self, maps):
        return [self.tower(x) for x in maps]


class Detector(BaseModel):
    """What its modes do is given by name."""

    def __init__(self, **modes):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 4, 1)
        self.bbox_head = Head()
        self.extra = nn.Conv2d(4, 4, 1)
        self.modes = modes

    def maps(self, inputs):
        x = self.backbone(torch.stack(list(inputs)))
        return [x, x[..., ::2, ::2]]

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.modes[mode](self, inputs)


def whole(net, inputs):
    return net.bbox_head(net.maps(inputs))


def with_extra(net, inputs):
    return net.extra(whole(net, inputs)[0])


def twice(net, inputs):
    """As CondInst: once for its outputs, once to assign targets."""
    net.bbox_head.forward(net.maps(inputs))
    return whole(net, inputs)


def nothing(net, inputs):
    return None


def fails(net, inputs):
    raise NotImplementedError('no such mode')


def look(**modes):
    return survey_detector(Detector(**modes), batches(1)[0])


@pytest.mark.parametrize(
    ('raw', 'predict', 'mode', 'modes'),
    [
        (whole, whole, 'tensor', ('tensor', 'predict')),
        (nothing, whole, 'predict', ('predict',)),
        (fails, whole, 'predict', ('predict',)),
        (whole, fails, 'tensor', ('tensor',)),
        # what is deployed has a layer that the raw forward leaves out
        (whole, with_extra, 'predict', ('tensor', 'predict')),
        (with_extra, whole, 'tensor', ('tensor', 'predict')),
    ],
)
def test_the_mode_that_runs_what_is_deployed(raw, predict, mode, modes):
    graph = look(tensor=raw, predict=predict)
    assert (graph.mode, graph.modes) == (mode, modes)
    assert {'backbone', 'bbox_head.tower'} <= set(graph.layers)
    assert ('extra' in graph.layers) == (with_extra in (raw, predict))
    assert graph.levels['bbox_head.tower'] == 2
    assert graph.heads == ('bbox_head',)


def test_calls_are_those_of_the_prediction():
    graph = look(tensor=twice, predict=whole)
    assert len(graph.layers['bbox_head.tower'].calls) == 4
    assert graph.levels['bbox_head.tower'] == 2
    assert graph.heads == ('bbox_head',)


def test_a_detector_whose_raw_forward_is_empty_is_quantized():
    model = Detector(tensor=nothing, predict=whole)
    session = quantize_detector(model, batches(), CONFIG)
    assert not session.plan.layers['bbox_head.tower'].why_float
    assert session.layers['backbone'].act_quantizers


def test_no_layer_at_all():
    with pytest.raises(PTQError, match='calls no layer that can be'):
        look(tensor=nothing, predict=nothing)
    with pytest.raises(CalibrationError, match=r'tensor: Not.*predict: Not'):
        look(tensor=fails, predict=fails)


def test_products_of_both_modes():
    def masks(net, inputs):
        x = whole(net, inputs)[0].flatten(2)
        return x @ x.mT

    model = Detector(tensor=whole, predict=masks)
    graph = survey_detector(model, batches(1)[0])
    assert uncovered_modules(model, graph) == {
        '(detector)': 'multiplies outside of layers (matmul)'
    }


def test_what_no_twin_covers():
    model = nn.Sequential(
        nn.Conv3d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Embedding(3, 3)
    )
    model.append(nn.BatchNorm2d(2))
    assert uncovered_modules(model) == {'0': 'no twin for Conv3d'}


class Normed(Detector):
    """A convolution and its batch norm, which the modes run as they like."""

    def __init__(self, **modes):
        super().__init__(**modes)
        self.bn = nn.BatchNorm2d(4)

    def maps(self, inputs):
        x = self.bn(self.extra(self.backbone(torch.stack(list(inputs)))))
        return [x, x[..., ::2, ::2]]


def reads_the_weight(net, inputs):
    x = whole(net, inputs)[0]
    return F.conv2d(x, net.extra.weight)


def skips_the_norm(net, inputs):
    return net.extra(whole(net, inputs)[0])


@pytest.mark.parametrize(
    'modes', [('tensor', 'predict'), ('predict', 'tensor')]
)
@pytest.mark.parametrize(
    ('odd', 'why'),
    [
        (whole, ''),
        (nothing, ''),
        (reads_the_weight, 'also read by a function in the detector itself'),
        (skips_the_norm, 'not every forward runs the two one after the other'),
    ],
)
def test_what_one_mode_forbids_no_mode_folds(modes, odd, why):
    model = Normed(**dict(zip(modes, (whole, odd), strict=True))).eval()
    graph = survey_detector(model, batches(1)[0])
    if not why:
        assert graph.bn_folds == {'bn': 'extra'}
        return
    # a norm that the graph's own forward leaves out was never to fold
    assert graph.bn_folds == {} and why in graph.kept_norms.get('bn', why)
    assert graph.layers['extra'].held == (odd is reads_the_weight)
