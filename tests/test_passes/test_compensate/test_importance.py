# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Positions count by what an error there does to the outputs."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Batches, Images
from mmdet_ptq.detectors import adapter_for
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.compensate import importance
from mmdet_ptq.passes.compensate.importance import ALIKE, weights_of_positions
from mmdet_ptq.quant_cfg import parse_quant_cfg

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
RULES = [
    dict(
        match='*',
        weight=dict(type='UniformQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer'),
    )
]
INIT = [dict(type='Observe'), dict(type='SetRanges')]


class Left(BaseModel):
    """Gives the left half of a map that it makes twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(32, 32, 1)
        self.head = nn.Conv2d(32, 2, 1)
        self.idle = nn.Linear(4, 4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)).float()
        self.idle(x)
        levels = [self.mix(x), 2 * self.mix(x[..., :2, :])]
        return [self.head(y)[..., :2] for y in levels]


def batches(n=6):
    torch.manual_seed(1)
    found = []
    for _ in range(n):
        x = torch.randn(32, 4, 4)
        # other channels are strong on the right
        x[:16, :, :2] *= 0.2
        x[16:, :, 2:] *= 0.2
        x[:, :, 2:] *= 5
        found.append(dict(inputs=[x], data_samples=[None]))
    return found


def quantized(**args):
    model, data = Left().eval(), batches()
    exact = outputs(model, data)
    passes = [*INIT, dict(type='CompensateRounding', rows=200, **args)]
    cfg = dict(bits='w2a8', rules=RULES, passes=passes)
    session = quantize_detector(model, data, cfg)
    return float((outputs(model, data) - exact).norm()), session


def outputs(model, data):
    with torch.no_grad():
        return torch.cat([y.flatten() for x in data for y in model(**x)])


def test_weights_by_hand(monkeypatch):
    """The gradient at a map is a 1 x 1 convolution turned round."""
    model, data = Left().eval(), batches(2)
    config = parse_quant_cfg(dict(bits='w8a8', rules=RULES, passes=INIT))
    session = prepare(model, config, data[0], Batches(model, data))
    drawn = []

    def direction(r, rng):
        drawn.append(torch.randn(r.shape, generator=rng))
        return drawn[-1]

    monkeypatch.setattr(importance, '_direction', direction)
    layers = {n: session.layers[n] for n in ('mix', 'head', 'idle')}
    with session.cache() as cache:
        adapter = adapter_for(model, session.graph, True)
        images = Images(session, cache, adapter, [])
        found = weights_of_positions(session, images, layers, 3)
        with torch.no_grad(), float_mode(model):
            exact = images.run(1)
    # nothing that it gives is read
    assert set(found[1]) == {'mix', 'head'}
    # relative errors of two outputs
    factors = [(2 * (y**2).sum()) ** -0.5 for y in exact]
    mine = drawn[6:]
    weight = model.head.weight.detach()[:, :, 0, 0]
    for call in (0, 1):
        rows = 4 if call == 0 else 2
        squares = torch.zeros(rows, 4)
        for k in range(3):
            v = mine[2 * k + call][0] * factors[call]
            for i in range(rows):
                for j in range(2):
                    for c in range(32):
                        g = sum(v[o, i, j] * weight[o, c] for o in (0, 1))
                        squares[i, j] += (g * (1 + call)) ** 2
        expected = ALIKE + (1 - ALIKE) * squares / squares.mean()
        torch.testing.assert_close(found[1]['mix'][call], expected.flatten())
        assert found[1]['head'][call].shape == (rows * 4,)


def test_what_counts_is_nearer():
    plain, _ = quantized()
    weighed, session = quantized(probes=2)
    assert weighed < 0.8 * plain
    rows = {r.unit: r.rows for r in session.records}
    assert rows['mix'] == 200 * 6 * 2  # some of the 24 positions many times
    assert quantized(probes=2)[0] == weighed


def test_positions_alike_where_nothing_counts():
    zero = importance._of_mean_1([torch.zeros(3), torch.tensor([0.0, 4.0])])
    assert zero[0].tolist() == [1, 1, 1]
    assert zero[1].tolist() == pytest.approx([ALIKE, 2 - ALIKE])


def test_detectors_without_outputs(monkeypatch):
    module = 'mmdet_ptq.passes.compensate.compensate_rounding'
    monkeypatch.setattr(f'{module}.why_no_outputs', lambda *_: 'of a reason')
    ours, session = quantized(probes=2)
    assert ours == quantized()[0]
    (said,) = [n for n in session.notes if 'count alike' in n]
    assert 'of a reason' in said and 'probes=0' in said
