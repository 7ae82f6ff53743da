# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Fixed noise on the inputs of linear layers."""

import copy

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
from mmdet_ptq.passes import AddNoise, FoldBatchNorm, Observe, SetRanges
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.records import NoiseRecord

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
PASSES = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='MinMaxObserver')),
    dict(type='SetRanges'),
    dict(type='AddNoise'),
    dict(type='CorrectBias'),
]
RULES = [dict(match='*', weight=dict(granularity='channel'), act={})]


class Net(BaseModel):
    """Linear layers that read the images, two of them one tensor."""

    def __init__(self, linear=True):
        super().__init__()
        torch.manual_seed(0)
        kind = nn.Linear if linear else lambda i, o, **kw: nn.Conv2d(i, o, 1)
        self.one, self.two = kind(8, 8, bias=False), kind(8, 8)
        self.last = kind(8, 4)
        self.eval()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs))
        if isinstance(self.one, nn.Linear):
            x = x.flatten(2).mT
        return self.last(self.one(x).relu() + self.two(x))


def batches(count=8):
    """Values in the middle between two of 16 steps, and the ends."""
    rng = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        x = torch.randint(4, 7, (8, 5, 6), generator=rng) + 0.5
        x = x + 0.02 * torch.randn(8, 5, 6, generator=rng)
        x[:, 0, 0], x[:, 0, 1] = 0, 15
        found.append(dict(inputs=[x], data_samples=[None]))
    return found


def outputs(model):
    with torch.no_grad():
        return torch.cat([model(**b).flatten() for b in batches(4)])


def ranged(model=None, rules=RULES, data=None):
    model = model or Net()
    config = parse_quant_cfg(dict(bits='w4a4', rules=rules, passes=PASSES))
    data = data or batches()
    session = prepare(model, config, data[0], Batches(model, data))
    session.wanted = frozenset({'means'})
    FoldBatchNorm().run(session)
    Observe(dict(type='MinMaxObserver')).run(session)
    SetRanges().run(session)
    return model, session


def noise_of(layer):
    return -layer.input_shift


def test_the_float_model_stays_the_same():
    model, session = ranged()
    with float_mode(model):
        before = outputs(model)
        AddNoise().run(session)
        after = outputs(model)
    assert noise_of(model.two).abs().max() > 0.1
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_the_quantized_layers_against_the_formula():
    """``Wq q(x + N) + bias - Wq N``."""
    model, session = ranged()
    float_bias = model.two.bias.clone()
    AddNoise().run(session)
    (record,) = (r for r in session.records if r.unit == 'one')
    assert record.layers == ['one', 'two']
    assert torch.equal(model.one.input_shift, model.two.input_shift)
    noise = noise_of(model.two).double()
    act = model.two.act_quantizers['input']
    step = float(act.scale)
    assert float(noise.abs().max()) <= record.amplitude * step
    assert record.amplitude in [round(0.05 * i, 2) for i in range(1, 21)]
    x = batches(1)[0]['inputs'][0].flatten(1).T
    low = -int(act.zero_point) * step
    codes = ((x.double() + noise - low) / step).round().clamp(0, 15)
    quantized = (codes * step + low).float()
    for layer, bias in ((model.two, float_bias), (model.one, 0)):
        weight = layer.quantized_weight().double()
        wanted = quantized.double() @ weight.T + bias - weight @ noise
        found = layer(x).double()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_it_helps_where_values_lie_between_steps():
    errors, rules = [], [*RULES, dict(match='last', act=None)]
    for passes in (PASSES, [p for p in PASSES if p['type'] != 'AddNoise']):
        model = Net()
        quantize_detector(
            model, batches(), dict(bits='w8a4', rules=rules, passes=passes)
        )
        errors.append(float((outputs(model) - outputs(Net())).norm()))
    assert errors[0] < 0.8 * errors[1]


def test_what_it_reports_is_the_error_of_the_layers():
    """On all rows, against outputs of the layers themselves."""
    model, session = ranged()
    (plain,) = (copy.deepcopy(m) for m in [model])
    AddNoise(rows=1000).run(session)
    (record,) = (r for r in session.records if r.unit == 'one')
    exact, errors = Net(), []
    for quantized in (model, plain):
        error = 0.0
        for batch in batches():
            x = batch['inputs'][0].flatten(1).T
            for name in ('one', 'two'):
                off = getattr(quantized, name)(x) - getattr(exact, name)(x)
                error += float(off.square().sum())
        errors.append(error)
    assert errors[0] / errors[1] == pytest.approx(record.error, rel=0.1)


def test_no_noise_where_it_does_not_help():
    """Every value is one of the steps: all noise does harm."""
    data = batches()
    for batch in data:
        batch['inputs'][0].round_()
    model, session = ranged(data=data)
    AddNoise().run(session)
    (record,) = (r for r in session.records if r.unit == 'one')
    assert record.amplitude == 0 and record.error == 1
    assert 'input_shift' not in model.one._buffers


def test_means_are_renewed():
    _, session = ranged()
    AddNoise().run(session)
    session.state = {}
    means = session.stats.means
    found = means.state_dict()
    Observe(dict(type='MinMaxObserver')).run(session)
    again = session.stats.means.state_dict()
    assert found['counts']['two'] == again['counts']['two']
    for name, total in found['sums'].items():
        torch.testing.assert_close(
            total.double(), again['sums'][name].double(), rtol=1e-4, atol=2e3
        )


def test_an_artefact_has_it(tmp_path):
    model = Net()
    session = quantize_detector(
        model, batches(), dict(bits='w4a4', rules=RULES, passes=PASSES)
    )
    assert any(
        isinstance(r, NoiseRecord) and r.amplitude for r in session.records
    )
    save_quantized(session, tmp_path / 'quantized.pth')
    other = Net()
    load_quantized(other, tmp_path / 'quantized.pth')
    assert torch.equal(outputs(other), outputs(model))


def test_behind_scaled_inputs():
    """A layer that scales its inputs already."""
    passes = [PASSES[0], dict(type='ScaleInputs', gain=0.0), *PASSES[1:]]
    data = batches()
    for batch in data:
        batch['inputs'][0] *= torch.logspace(-1, 1, 8).view(-1, 1, 1)
    model = Net()
    session = quantize_detector(
        model, data, dict(bits='w4a4', rules=RULES, passes=passes)
    )
    layers = [e.layer for e in session.edits if hasattr(e, 'layer')]
    assert layers.count('one') == layers.count('two') == 2
    # factors of the one, shifts of both
    factors = model.two.input_factors
    assert not torch.equal(factors, torch.ones_like(factors))
    noisy = {r.unit: r.amplitude for r in session.records[-2:]}
    assert noisy['one'] > 0


def test_without_linear_layers_it_is_noted():
    _, session = ranged(Net(linear=False))
    before = len(session.edits)
    AddNoise().run(session)
    assert 'no input of a linear layer is quantized' in session.notes[-1]
    assert len(session.edits) == before


def test_half_of_the_images_are_not_enough():
    _, session = ranged(data=batches(1))
    AddNoise().run(session)
    assert any('half of the calibration images' in n for n in session.notes)
    assert session.notes[-1] == 'AddNoise: 0 of 2 inputs have noise'
    assert not session.edits


def test_grids_of_channels_are_refused():
    rules = [*RULES, dict(match='*', act=dict(granularity='channel'))]
    with pytest.raises(QuantConfigError, match='of 2 inputs of linear'):
        ranged(rules=rules)


@pytest.mark.parametrize(
    'passes',
    [
        [*PASSES[:2], PASSES[3], PASSES[2], PASSES[4]],
        [*PASSES[:4], PASSES[3], PASSES[4]],
        [*PASSES[:3], PASSES[4], PASSES[3]],
        [*PASSES[:4], PASSES[2], PASSES[4]],
        [*PASSES[:4], dict(type='ChooseExponents'), PASSES[4]],
    ],
)
def test_its_place(passes):
    quant_cfg = dict(bits='w4a4', rules=RULES, passes=passes)
    with pytest.raises(QuantConfigError, match='AddNoise'):
        quantize_detector(Net(), batches(1), quant_cfg)


def test_arguments():
    for bad in (
        dict(amplitudes=[0.0]),
        dict(amplitudes=[]),
        dict(draws=0),
        dict(rows=0),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            AddNoise(**bad)


def test_it_is_resumed(tmp_path):
    quant_cfg = dict(bits='w4a4', rules=RULES, passes=PASSES)
    path = tmp_path / 'resume.pth'
    resumed, whole = stopped_and_resumed(
        Net, batches(), quant_cfg, 'AddNoise', path
    )
    assert resumed[1:] == whole[1:] and whole[2]
    assert resumed[0].keys() == whole[0].keys()
    assert all(torch.equal(resumed[0][n], t) for n, t in whole[0].items())
