# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What GELUs give, shifted until nothing is negative."""

import pytest
import torch
from mmengine.model import BaseModel
from resume_kit import stopped_and_resumed
from torch import nn

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes import FoldBatchNorm, ShiftGelu
from mmdet_ptq.quant_cfg import parse_quant_cfg

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
PASSES = [
    dict(type='FoldBatchNorm'),
    dict(type='ShiftGelu'),
    dict(type='Observe', observer=dict(type='MinMaxObserver')),
    dict(type='SetRanges'),
    dict(type='CorrectBias'),
]
RULES = [dict(match='*', weight=dict(granularity='channel'), act={})]


class Net(BaseModel):
    """Behind GELUs: two linear layers, a 1 x 1 and a padded convolution."""

    def __init__(self, gelu=True):
        super().__init__()
        torch.manual_seed(0)
        self.act = nn.GELU() if gelu else nn.ReLU()
        self.first = nn.Linear(3, 8)
        self.bare, self.two = nn.Linear(8, 4, bias=False), nn.Linear(8, 4)
        self.wide, self.point = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 1)
        self.padded = nn.Conv2d(6, 5, 3, padding=1)
        self.eval()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)).flatten(2).transpose(1, 2)
        x = self.act(self.first(x))
        x = self.bare(x) + self.two(x).relu()
        x = self.wide(x.mT.unflatten(2, (6, 8)))
        return self.padded(self.act(x)), self.point(self.act(x * 2))


def batches(count=4):
    rng = torch.Generator().manual_seed(1)
    return [
        dict(inputs=[torch.randn(3, 6, 8, generator=rng)], data_samples=[None])
        for _ in range(count)
    ]


def outputs(model):
    with torch.no_grad():
        found = [model(**b) for b in batches(2)]
    return torch.cat([y.flatten() for ys in found for y in ys])


def run(model, rules=RULES):
    config = parse_quant_cfg(dict(bits='w4a4', rules=rules, passes=PASSES))
    data = batches()
    session = prepare(model, config, data[0], Batches(model, data))
    FoldBatchNorm().run(session)
    with float_mode(model):
        before = outputs(model)
        ShiftGelu().run(session)
        after = outputs(model)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    return session


def test_what_is_shifted():
    model = Net()
    weight, bias = model.two.weight.clone(), model.two.bias.clone()
    session = run(model)
    assert [e.layer for e in session.edits] == ['bare', 'two', 'point']
    c = 0.16997124254703522
    # against the formula
    assert torch.equal(model.two.weight, weight)
    moved = bias - c * weight.sum(1)
    torch.testing.assert_close(model.two.bias, moved)
    torch.testing.assert_close(model.bare.bias, -c * model.bare.weight.sum(1))
    assert session.notes[-1].startswith('ShiftGelu: 2 of 3')
    assert 'padded adds zeros to it' in session.notes[-2]
    # what is quantized is nowhere negative, and is what the GELU gave plus c
    seen = []
    x = torch.linspace(-10, 10, 8000).view(-1, 8)
    with (
        float_mode(model),
        model.two.listening(lambda p, i, y: seen.append(y)),
    ):
        model.two(nn.functional.gelu(x))
    assert 0 <= float(seen[0].min()) < 1e-4
    torch.testing.assert_close(seen[0], nn.functional.gelu(x) + c)


def test_ranges_begin_at_zero():
    model = Net()
    session = quantize_detector(
        model, batches(), dict(bits='w4a4', rules=RULES, passes=PASSES)
    )
    quantizer = session.layers['two'].act_quantizers['input']
    assert int(quantizer.zero_point) == 0


def test_an_artefact_has_it(tmp_path):
    model = Net()
    session = quantize_detector(
        model, batches(), dict(bits='w4a4', rules=RULES, passes=PASSES)
    )
    save_quantized(session, tmp_path / 'quantized.pth')
    other = Net()
    load_quantized(other, tmp_path / 'quantized.pth')
    assert torch.equal(outputs(other), outputs(model))


def test_without_a_gelu_it_is_noted():
    session = run(Net(gelu=False))
    assert not session.edits
    assert 'no quantized input comes from a GELU' in session.notes[-1]


def test_where_no_bias_could_make_up_for_it():
    rules = [*RULES, dict(match=['bare', 'two', 'point'], act=None)]
    with pytest.raises(QuantConfigError, match='padded adds zeros to it'):
        run(Net(), rules)


@pytest.mark.parametrize(
    'passes',
    [
        [PASSES[0], dict(type='ScaleInputs'), *PASSES[1:]],
        [*PASSES[:2], dict(type='ScaleInputs'), *PASSES[2:]],
        [*PASSES[:2], PASSES[1], *PASSES[2:]],
        [*PASSES[:3], PASSES[1], *PASSES[3:]],
        PASSES[1:],
    ],
)
def test_its_place(passes):
    quant_cfg = dict(bits='w4a4', rules=RULES, passes=passes)
    with pytest.raises(QuantConfigError, match='ShiftGelu'):
        quantize_detector(Net(), batches(1), quant_cfg)


def test_it_is_resumed(tmp_path):
    quant_cfg = dict(bits='w4a4', rules=RULES, passes=PASSES)
    path = tmp_path / 'resume.pth'
    resumed, whole = stopped_and_resumed(
        Net, batches(), quant_cfg, 'ShiftGelu', path
    )
    assert resumed[1:] == whole[1:] and whole[2]
    assert resumed[0].keys() == whole[0].keys()
    assert all(torch.equal(resumed[0][n], t) for n, t in whole[0].items())
