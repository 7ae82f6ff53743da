# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Input channels with grids of their own, in whole models."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from rank_kit import on_ranks
from torch import nn

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.calibration import Batches
from mmdet_ptq.cost import cost_of
from mmdet_ptq.engine.quantize import prepare, run_quantization
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes import FoldBatchNorm, ScaleInputs
from mmdet_ptq.passes.scale_inputs import scale_inputs as module
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.records import ScaledInputsRecord
from mmdet_ptq.surgery import ScaledInput

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
PASSES = [
    dict(type='FoldBatchNorm'),
    dict(type='ScaleInputs'),
    dict(type='Observe'),
    dict(type='SetRanges'),
    dict(type='CorrectBias'),
]
RULES = [
    dict(match='*', weight=dict(granularity='channel'), act={}),
    dict(match='first', act=dict(bits=8)),
]


class Net(BaseModel):
    """Uneven channels behind SiLU, behind a sum, behind ReLU."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.dtype = dtype
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.padded = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        for layer in (self.first, self.one, self.padded):
            layer.weight.data *= torch.logspace(-1, 1, 8).view(-1, 1, 1, 1)
        for layer in (self.padded, self.last):
            layer.weight.data *= torch.logspace(1, -1, 8).view(1, -1, 1, 1)
        self.to(torch.get_default_device())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.first(torch.stack(list(inputs)).to(self.dtype))
        x = nn.functional.silu(x)
        x = nn.functional.silu(self.one(x)) + self.two(x)
        x = self.last(self.padded(x).relu())
        return self.depthwise(x)


def batches(count=16):
    rng = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[torch.randn(3, 12, 16, generator=rng)],
            data_samples=[None],
        )
        for _ in range(count)
    ]


def outputs(model):
    with torch.no_grad():
        return torch.cat([model(**b).flatten() for b in batches(4)])


def before_passes(rules=RULES):
    model = Net().eval()
    config = parse_quant_cfg(dict(bits='w8a4', rules=rules, passes=PASSES))
    data = batches()
    session = prepare(model, config, data[0], Batches(model, data))
    FoldBatchNorm().run(session)
    return model, session


def scaled(**args):
    model, session = before_passes()
    with float_mode(model):
        before = outputs(model)
    ScaleInputs(**args).run(session)
    with float_mode(model):
        torch.testing.assert_close(
            outputs(model), before, rtol=1e-4, atol=1e-4
        )
    return model, session, {r.unit: r for r in session.records}


def test_what_is_scaled_and_how():
    model, session, records = scaled()
    # first stays within 8 bits; a depthwise layer has groups
    assert set(records) == {'first', 'one', 'padded', 'last'}
    assert records['one'].layers == ['one', 'two']
    assert records['one'].error < 0.9 and records['one'].strength > 0
    # SiLU cannot be scaled: the layers divide themselves
    edits = {e.layer: e for e in session.edits}
    assert not records['one'].free and {'one', 'two'} <= set(edits)
    assert torch.equal(model.one.input_factors, model.two.input_factors)
    # zeros come in at the borders
    assert not records['padded'].shifted and not edits['padded'].shifted
    # one ReLU and one reader: what makes it is divided
    assert records['last'].free and 'last' not in edits
    assert records['last'].error < 0.9
    assert not hasattr(model.last, 'input_factors')


def test_one_grid_of_a_weight_is_not_spoilt():
    """What makes the tensor is divided by factors, channel by channel."""
    rules = [dict(match='*', weight=dict(granularity='tensor'), act={})]
    _, session = before_passes(rules=rules)
    ScaleInputs().run(session)
    assert any(r.strength for r in session.records)
    assert not any(r.free for r in session.records)


def test_what_it_costs():
    model, session, records = scaled()
    found = cost_of(model, session.graph, session.plan)
    # a tensor that two layers read is scaled once; what is free is not
    own = {e.layer for e in session.edits if isinstance(e, ScaledInput)}
    assert {'one', 'two', 'padded'} <= own
    expected = 12 * 16 * (8 + 8 + 3 * ('first' in own))
    assert found['scaled_elements'] == expected
    before = cost_of(Net(), session.graph, session.plan)
    assert before['scaled_elements'] == 0
    more = found['bops']['quantized'] - before['bops']['quantized']
    assert more == expected * 32 * 32
    free = sum(r.free for r in records.values())
    assert session.notes[-1].endswith(f'{free} of them at no cost')


def test_nothing_is_scaled_that_does_not_gain():
    _, session, records = scaled(gain=0.999)
    assert not session.edits
    assert all(r.strength == 0 and r.error == 1 for r in records.values())


def test_the_detector_loses_less():
    errors = []
    for passes in (PASSES, [p for p in PASSES if p['type'] != 'ScaleInputs']):
        model = Net().eval()
        quantize_detector(
            model, batches(), dict(bits='w8a4', rules=RULES, passes=passes)
        )
        errors.append(float((outputs(model) - outputs(Net().eval())).norm()))
    assert errors[0] < 0.8 * errors[1]


def test_an_artefact_has_the_scales(tmp_path):
    model = Net().eval()
    session = quantize_detector(
        model, batches(), dict(bits='w4a4', rules=RULES, passes=PASSES)
    )
    assert any(isinstance(e, ScaledInput) for e in session.edits)
    save_quantized(session, tmp_path / 'quantized.pth')
    other = Net().eval()
    load_quantized(other, tmp_path / 'quantized.pth')
    assert torch.equal(outputs(other), outputs(model))


def test_what_has_no_half_of_the_images_keeps_its_grid():
    model, session = before_passes()
    session.feed = Batches(model, batches(1))
    ScaleInputs().run(session)
    assert not session.edits and not session.records
    assert session.notes[-1] == (
        'ScaleInputs: inputs keep one grid: what one half of the calibration '
        'images finds is tried on the other, and there is only one; give two '
        'or more'
    )


def test_what_half_of_the_images_do_not_reach_is_named(monkeypatch):
    model, session = before_passes()
    session.feed = Batches(model, batches(2))
    given = module.levels_of

    def levels_of(seen, name, half, *args):
        missed = name == 'one' and half == 1
        return [] if missed else given(seen, name, half, *args)

    monkeypatch.setattr(module, 'levels_of', levels_of)
    ScaleInputs().run(session)
    (why,) = [n for n in session.notes if 'do not reach them' in n]
    assert why.endswith(': one')
    assert 'of 3 inputs' in session.notes[-1]


class Store:
    """Keeps progress, and stops the run at one of its writes."""

    def __init__(self, stop_at=None):
        self.saved, self.count, self.stop_at = None, 0, stop_at

    def load(self):
        return copy.deepcopy(self.saved)

    def save(self, progress):
        self.saved = copy.deepcopy(progress)
        self.count += 1
        if self.count == self.stop_at:
            raise KeyboardInterrupt


def stored_run(store, resume):
    model, data = Net().eval(), batches()
    passes = [*PASSES, dict(type='CompensateRounding', rows=8)]
    config = parse_quant_cfg(dict(bits='w4a4', rules=RULES, passes=passes))
    session = run_quantization(
        model,
        config,
        data[0],
        Batches(model, data),
        store=store,
        resume=resume,
    )
    return outputs(model), session.records


def test_a_run_that_is_stopped_goes_on():
    whole = Store()
    expected, records = stored_run(whole, False)
    for stop_at in range(1, whole.count):
        store = Store(stop_at)
        with pytest.raises(KeyboardInterrupt):
            stored_run(store, False)
        found, same = stored_run(store, True)
        assert torch.equal(found, expected) and same == records


def test_ranks_find_the_same(tmp_path):
    """Each has half of the images, in both halves of the choice."""

    def factors(rank):
        model, session = before_passes()
        session.feed = Batches(model, batches()[rank::2])
        ScaleInputs(rows=200).run(session)
        edits = [e for e in session.edits if isinstance(e, ScaledInput)]
        return {e.layer: e.factors.tolist() for e in edits}

    one, other = on_ranks(factors, 2, tmp_path)
    assert one == other
    _, session = before_passes()
    ScaleInputs(rows=200).run(session)
    edits = [e for e in session.edits if isinstance(e, ScaledInput)]
    alone = {e.layer: e.factors for e in edits}
    assert list(alone) == list(one)
    # all rows of a map of 12 x 16, in another order
    for name, found in one.items():
        torch.testing.assert_close(torch.tensor(found), alone[name].float())


def test_arguments():
    for bad in (
        dict(rows=0),
        dict(strengths=[1.5]),
        dict(strengths=[]),
        dict(gain=2.0),
        dict(p=0.0),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ScaleInputs(**bad)


@pytest.mark.parametrize('later', ['EqualizeChannels', 'ScaleInputs'])
def test_what_layers_scale_themselves_is_not_scaled_again(later):
    """Beside a shift, factors would change the float detector."""
    passes = [*PASSES[:2], dict(type=later), *PASSES[2:]]
    quant_cfg = dict(bits='w4a4', rules=RULES, passes=passes)
    with pytest.raises(QuantConfigError, match='ScaleInputs'):
        quantize_detector(Net().eval(), batches(1), quant_cfg)


def test_nan_names_the_layer():
    data = batches(4)
    data[1]['inputs'][0].fill_(float('nan'))
    quant_cfg = dict(bits='w4a4', rules=RULES, passes=PASSES)
    with pytest.raises(NumericError, match=r'^first: NaN or Inf in'):
        quantize_detector(Net().eval(), data, quant_cfg)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_model_of_half_precision(dtype):
    """It is scaled as the float32 one of the same numbers is."""

    def records(model, cast):
        data = batches(6)
        for batch in data:
            batch['inputs'] = [x.to(dtype) for x in batch['inputs']]
        quant_cfg = dict(bits='w8a4', rules=RULES, passes=PASSES)
        session = quantize_detector(cast(model), data, quant_cfg)
        assert outputs(model).isfinite().all()
        return [
            r for r in session.records if isinstance(r, ScaledInputsRecord)
        ]

    half = records(Net(dtype).eval(), lambda m: m.to(dtype))
    full = records(Net().eval(), lambda m: m.to(dtype).float())
    for one, other in zip(half, full, strict=True):
        assert one.layers == other.layers and one.shifted == other.shifted
        assert one.error == pytest.approx(other.error, rel=0.2)
