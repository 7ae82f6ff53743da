# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors without outputs to compare are known before the first pass."""

from dataclasses import replace

import pytest
import torch
from mmengine.model import BaseModel
from plan_kit import graph
from torch import nn
from two_levels import MINMAX, RULES, batches

from mmdet_ptq import quantize_detector
from mmdet_ptq.detectors import (
    PredictionAdapter,
    RawAdapter,
    adapter_for,
    find_adapter,
    why_no_outputs,
)
from mmdet_ptq.engine.survey import survey_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.testing import random_detector

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


class Detector(BaseModel):
    def __init__(self, raw):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
        self.passes, self.raw = 0, raw

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'tensor' and self.raw is NotImplementedError:
            raise NotImplementedError
        self.passes += 1
        x = self.backbone(torch.stack(list(inputs)))
        return None if mode == 'tensor' and not self.raw else [x]


def config(*passes):
    start = [
        dict(type='Observe', observer=dict(type='LpObserver')),
        dict(type='SetRanges', weight_observer=MINMAX),
    ]
    return dict(bits='w3a8', rules=RULES, passes=[*start, *passes])


def reconstruct(*losses):
    return dict(
        type='Reconstruct',
        learn=[dict(type='AdaRound')],
        losses=[dict(type=loss) for loss in losses],
        iters=5,
    )


@pytest.mark.parametrize('raw', [NotImplementedError, None])
@pytest.mark.parametrize(
    ('one', 'name'),
    [
        (reconstruct('L2Loss', 'DetectionLoss'), 'DetectionLoss'),
        (reconstruct('FisherLoss'), 'DetectionLoss'),
        (dict(type='ChooseExponents'), 'ChooseExponents'),
        (dict(type='LAPQ'), 'LAPQ'),
    ],
)
def test_a_loss_without_outputs_is_refused_before_any_pass(raw, one, name):
    model = Detector(raw)
    with pytest.raises(QuantConfigError, match=f'{name}.*no detector adapter'):
        quantize_detector(model, batches(), config(one))
    assert model.passes <= 2  # the survey


@pytest.mark.parametrize('raw', [NotImplementedError, None])
def test_local_losses_see_predictions(raw):
    model = Detector(raw)
    session = quantize_detector(
        model, batches(), config(reconstruct('L2Loss'))
    )
    assert [r.unit for r in session.records] == ['backbone.0', 'backbone.1']
    notes = [n for n in session.notes if 'units see predictions' in n]
    assert len(notes) == 1


@pytest.mark.parametrize(
    ('raw', 'on_outputs', 'kind'),
    [
        (True, True, RawAdapter),
        (True, False, RawAdapter),
        (None, False, PredictionAdapter),
        (NotImplementedError, False, PredictionAdapter),
    ],
)
def test_choice(raw, on_outputs, kind):
    model = Detector(raw)
    found = survey_detector(model, batches(1)[0])
    assert type(adapter_for(model, found, on_outputs)) is kind
    assert bool(why_no_outputs(model, found)) == (raw is not True)


@pytest.mark.parametrize('raw', [False, True])
@pytest.mark.parametrize('on_outputs', [False, True])
def test_choice_where_an_adapter_covers_the_head(tiny, raw, on_outputs):
    """Whether raw outputs can be had or not."""
    model = random_detector(tiny.config['mask_rcnn'])
    surveyed = replace(graph(), raw=raw, mode='predict')
    found = adapter_for(model, surveyed, on_outputs)
    assert type(found) is type(find_adapter(model)) is not RawAdapter
    assert found.mask
    assert why_no_outputs(model, surveyed) == ''


def test_choice_where_raw_outputs_exist_but_layers_are_predicted():
    """Raw outputs for a loss on them, all that is deployed for others."""
    model = Detector(True)
    surveyed = replace(graph(), raw=True, mode='predict')
    assert type(adapter_for(model, surveyed, True)) is RawAdapter
    assert type(adapter_for(model, surveyed, False)) is PredictionAdapter
