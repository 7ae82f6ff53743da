# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scales of whole models, searched."""

import pytest
import torch
from mmengine.model import BaseModel
from rank_kit import on_ranks
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.layers.matmul import MatMul
from mmdet_ptq.passes import Observe, SearchScales, SetRanges
from mmdet_ptq.passes.search_scales import search_scales as module
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.quantizers import BaseQuantizer
from mmdet_ptq.records import SearchRecord

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
PASSES = [
    dict(type='Observe'),
    dict(type='SetRanges'),
    dict(type='SearchScales', rows=64),
]
RULES = [
    dict(
        match='*',
        weight=dict(granularity='channel'),
        act=dict(per_level=True),
    ),
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(match='@grouped', act=dict(granularity='group')),
]


class Net(BaseModel):
    """Convolutions, one of them on two levels, and an attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.qkv = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.qk, self.pv = MatMul(), MatMul()
        self.head = nn.Conv2d(8, 4, 1)
        for layer in (self.stem, self.depthwise):
            layer.weight.data *= torch.logspace(-1, 1, 8).view(-1, 1, 1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = nn.functional.silu(self.stem(torch.stack(list(inputs))))
        x = self.depthwise(x)
        tokens = x.flatten(2).mT
        q, k, v = (
            part(tokens).unflatten(-1, (2, 4)).transpose(1, 2)
            for part in self.qkv
        )
        logits = self.qk(q, k.mT).softmax(-1)
        tokens = tokens + self.pv(logits, v).transpose(1, 2).flatten(2)
        x = tokens.mT.reshape(x.shape)
        return self.head(x), self.head(x[..., ::2, ::2] * 4)


def batches(count=6, scale=1.0):
    rng = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[scale * torch.randn(3, 12, 16, generator=rng)],
            data_samples=[None],
        )
        for _ in range(count)
    ]


def before_search(bits='w4a4', rules=RULES, data=None, passes=PASSES):
    model = Net().eval()
    config = parse_quant_cfg(dict(bits=bits, rules=rules, passes=passes))
    data = data or batches()
    session = prepare(model, config, data[0], Batches(model, data))
    Observe().run(session)
    SetRanges().run(session)
    return model, session


def searched(**args):
    model, session = before_search()
    SearchScales(**{'rows': 64, **args}).run(session)
    return model, session


def errors(model, session):
    """Squared errors of each layer's output on its float inputs."""
    found = {}
    inputs, hooks = {}, []
    for name, layer in session.layers.items():
        hooks.append(
            layer.register_forward_hook(
                lambda m, args, out, n=name: inputs.setdefault(n, []).append(
                    (args, out)
                )
            )
        )
    with torch.no_grad(), float_mode(model):
        for batch in batches():
            model(**batch)
    for hook in hooks:
        hook.remove()
    for name in inputs:
        layer = session.layers[name]
        layer.levels = 1
        pairs = inputs[name]
        if name != 'head':
            found[name] = sum(
                float((layer(*args) - y).detach().square().sum())
                for args, y in pairs
            )
    return found


def state(model):
    return {
        k: v.clone() for k, v in model.state_dict().items() if 'quantizer' in k
    }


def same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_every_output_is_nearer():
    """With every position sampled, by the layers themselves."""
    model, session = before_search()
    before = errors(model, session)
    model, session = searched(rows=10**6)
    after = errors(model, session)
    records = [r for r in session.records if isinstance(r, SearchRecord)]
    assert len(records) >= 12
    assert all(r.after <= r.before for r in records)
    # queries, keys and values share an input
    for name in ('stem', 'depthwise', 'qk', 'pv'):
        assert after[name] <= before[name] * (1 + 1e-5), name
    assert after['stem'] < 0.98 * before['stem']
    # what is recorded is the error of the output
    found = {(r.unit, r.tensor): r for r in records}
    ours = found['depthwise', 'input'].after
    assert ours == pytest.approx(after['depthwise'], rel=1e-3)


@pytest.mark.parametrize(
    'args',
    [
        dict(objective='tensor'),
        dict(objective='pearson', candidates='ranges', rounds=2),
        dict(objective='hessian', first='activations'),
        dict(candidates='ranges', tensors='weights'),
    ],
)
def test_nothing_is_worse(args):
    model, session = searched(**args)
    records = [r for r in session.records if isinstance(r, SearchRecord)]
    assert records and all(r.after <= r.before for r in records)
    assert any(r.after < r.before for r in records)
    tensors = {r.tensor for r in records}
    assert ('input' in tensors) == (args.get('tensors') != 'weights')
    assert ('a' in tensors) == (args.get('tensors') != 'weights')
    for batch in batches(2):
        assert all(torch.isfinite(y).all() for y in model(**batch))


def test_levels_keep_their_own_grids():
    _, session = searched()
    quantizer = session.layers['head'].act_quantizers['input']
    scales = quantizer.scale.flatten()
    assert len(scales) == 2 and scales[1] > 2 * scales[0]


def test_gradients_tell_channels_apart():
    """An output that the detector does not read has no gradient."""
    model, session = before_search()
    with torch.no_grad():
        model.head.weight[:, :4] = 0
    SearchScales(objective='hessian', rows=64).run(session)
    found = {
        (r.unit, r.tensor): r
        for r in session.records
        if isinstance(r, SearchRecord)
    }
    assert found['stem', 'input'].after <= found['stem', 'input'].before


def test_in_a_run_it_is_the_same_again():
    found = []
    for _ in range(2):
        model = Net().eval()
        cfg = dict(bits='w4a4', rules=RULES, passes=PASSES)
        quantize_detector(model, batches(), cfg)
        found.append(state(model))
    same(*found)


class Stopped(Exception):
    pass


def test_stopped_and_resumed(monkeypatch):
    monkeypatch.setattr(module, 'SAVED', 2)
    model, session = searched()
    whole, notes = state(model), session.records
    model, session = before_search()
    saved = []

    def save():
        saved.append(session.export())
        raise Stopped

    session.save = save
    with pytest.raises(Stopped):
        SearchScales(rows=64).run(session)
    assert saved[0]['units'] > 0
    model, session = before_search()
    session.state = saved[0]
    SearchScales(rows=64).run(session)
    same(state(model), whole)
    assert session.records == notes


def test_gradients_are_never_those_of_a_half_searched_detector(monkeypatch):
    """They are taken at the beginning, so nothing is kept before the end."""
    monkeypatch.setattr(module, 'SAVED', 1)
    _, session = before_search()
    saved = []
    session.save = lambda: saved.append(session.export())
    SearchScales(rows=64, objective='hessian').run(session)
    assert not saved and any(
        isinstance(r, SearchRecord) for r in session.records
    )


def _of_rank(rank):
    model = Net().eval()
    config = parse_quant_cfg(dict(bits='w4a4', rules=RULES, passes=PASSES))
    data = batches()[rank::2]
    session = prepare(model, config, batches()[0], Batches(model, data))
    Observe().run(session)
    SetRanges().run(session)
    SearchScales(rows=64).run(session)
    records = [r.to_dict() for r in session.records]
    return {k: v.tolist() for k, v in state(model).items()}, records


def test_ranks_find_what_one_finds(tmp_path):
    model, session = searched()
    one = {k: v.tolist() for k, v in state(model).items()}
    records = [r.to_dict() for r in session.records]
    for found, theirs in on_ranks(_of_rank, 2, tmp_path):
        assert found == one
        assert theirs == records


class Fixed(BaseQuantizer):
    set_range = encoding = num_rows = parameter_bits = None


def test_what_cannot_be_searched_is_named():
    _, session = before_search()
    session.layers['head'].set_quantizer('weight', Fixed(4, role='weight'))
    with pytest.raises(QuantConfigError, match='head: a Fixed'):
        SearchScales().prepare(session)
    SearchScales(tensors='activations').prepare(session)
    _, session = searched(tensors='activations')
    tensors = {r.tensor for r in session.records}
    assert {'input', 'a', 'b'} == tensors


def test_too_few_samples_change_nothing():
    model, session = before_search(data=batches(1))
    before = state(model)
    SearchScales(rows=1).run(session)
    notes = [n for n in session.notes if 'too few' in n]
    assert any(n.startswith('stem: 1 sampled positions') for n in notes)
    names = {r.unit for r in session.records}
    after = state(model)
    for key, value in before.items():
        if not any(key.startswith(name) for name in names):
            assert torch.equal(after[key], value), key


def test_overflow_is_named():
    _, session = before_search()
    session.feed.batches[2]['inputs'][0][0, 0, 0] = float('inf')
    with pytest.raises(NumericError, match='stem'):
        SearchScales(rows=10**6).run(session)


@pytest.mark.parametrize(
    'args, match',
    [
        (dict(objective='l2'), 'hessian, output'),
        (dict(candidates='grid'), 'progressive'),
        (dict(rows=0), 'rows'),
        (dict(count=8), 'count'),
        (dict(each=1), 'each'),
        (dict(fractions=(1.2, 0.5)), 'smaller and a larger'),
        (
            dict(keep=16, candidates='ranges'),
            "keep=16 acts with candidates='progressive' alone.*remove it",
        ),
        (dict(steps=1, candidates='ranges'), 'steps=1 acts with'),
        (dict(each=8, candidates='ranges'), 'each=8 acts with'),
        (dict(ranking=0.5), "ranking=0.5 acts with objective='pearson'"),
        (dict(images=4), "images=4 acts with objective='block'"),
        (dict(elimination=0.1), 'elimination=0.1 acts with'),
        (dict(loss=dict(type='FisherLoss')), "'hessian' or objective='block'"),
        (
            dict(objective='block', candidates='ranges', rows=64),
            'rows=64 acts with',
        ),
        (dict(tensors='weights', first='activations'), "tensors='all' alone"),
    ],
)
def test_arguments(args, match):
    with pytest.raises(ValueError, match=match):
        SearchScales(**args)


@pytest.mark.parametrize(
    'types, match',
    [
        (['Observe', 'SearchScales'], 'SetRanges'),
        (
            ['Observe', 'SetRanges', 'CorrectBias', 'SearchScales'],
            'after CorrectBias',
        ),
        (
            ['Observe', 'SetRanges', 'SearchScales', 'SetRanges'],
            'after SearchScales',
        ),
    ],
)
def test_its_place(types, match):
    cfg = dict(bits='w4a4', rules=RULES, passes=[dict(type=t) for t in types])
    with pytest.raises(QuantConfigError, match=match):
        quantize_detector(Net().eval(), batches(1), cfg)


def test_groups_of_channels_keep_their_widths():
    """Also where rows are those of a few groups of a convolution."""
    act = dict(type='ChannelGroups', bits=8, widths=[3, 8], channels=4)
    weight = dict(type='ChannelGroups', bits=6, widths=[6, 2, 5], channels=3)
    rules = [*RULES, dict(match=['qkv.*', 'head'], act=act)]
    rules.append(dict(match=['qkv.*', 'depthwise'], weight=weight))
    _, session = before_search(rules=rules)
    SearchScales(rows=64).run(session)
    found = {(r.unit, r.tensor): r for r in session.records}
    for key in (('qkv.0', 'input'), ('qkv.1', 'weight'), ('head', 'input')):
        assert found[key].after < found[key].before, key
    assert found['depthwise', 'weight'].after <= (
        found['depthwise', 'weight'].before
    )
    assert session.layers['qkv.0'].act_quantizers['input'].widths == [3, 8]
    assert session.layers['qkv.2'].weight_quantizer.widths == [6, 2, 5]
