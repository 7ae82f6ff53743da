# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Heads whose channels are mixed, and the detector that stays as it was."""

import dataclasses

import pytest
import torch
from mmdet.models.backbones.swin import WindowMSA
from mmengine.model import BaseModel
from rank_kit import on_ranks
from torch import nn
from two_levels import MINMAX, RULES, Tiny, batches

from mmdet_ptq import load_quantized, quantize_detector
from mmdet_ptq.apis import save_quantized
from mmdet_ptq.calibration.feed import Batches
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.layers import MatMul, float_mode
from mmdet_ptq.passes import FoldBatchNorm, MixHeads
from mmdet_ptq.passes.mix_heads import mix_heads
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.testing import noise_batches, random_detector

PASSES = [
    dict(type='FoldBatchNorm'),
    dict(type='MixHeads'),
    dict(type='Observe', observer=MINMAX),
    dict(type='SetRanges', weight_observer=MINMAX),
]


class Attending(BaseModel):
    """Attention of a few strong channels that depend on each other."""

    def __init__(self, bent=False):
        super().__init__()
        torch.manual_seed(0)
        self.bent = bent
        self.embed = nn.Conv2d(3, 16, 2, 2)
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)
        self.v, self.out = nn.Linear(16, 16), nn.Linear(16, 16)
        self.qk, self.pv = MatMul(), MatMul()
        strong = torch.logspace(-1, 1, 8).repeat(2)[:, None]
        with torch.no_grad():
            for layer in (self.q, self.k, self.v):
                layer.weight.mul_(strong * strong.T.clamp(max=1))
            self.out.weight.mul_(strong.T)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.embed(torch.stack(list(inputs)).float())
        x = x.flatten(2).mT
        q, k, v = (
            y.unflatten(-1, (2, 8)).transpose(1, 2)
            for y in (self.q(x), self.k(x), self.v(x))
        )
        if self.bent:
            q = q.relu()
        p = self.qk(q, k.mT * 0.1).softmax(-1)
        return self.out(self.pv(p, v).transpose(1, 2).flatten(2))


class Windows(BaseModel):
    """Swin's attention in windows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 12, 2, 2)
        self.attn = WindowMSA(12, 2, (2, 2))
        nn.init.normal_(self.attn.relative_position_bias_table)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.embed(torch.stack(list(inputs)).float())
        windows = x.unfold(2, 2, 2).unfold(3, 2, 2)
        rows = windows.permute(0, 2, 3, 4, 5, 1).reshape(-1, 4, 12)
        return self.attn(rows)


def outputs(model, data):
    with torch.no_grad():
        return torch.cat([model(**one).flatten() for one in data])


def prepared(model, data, passes=PASSES):
    """Before MixHeads has run."""
    config = parse_quant_cfg(dict(bits='w4a4', rules=RULES, passes=passes))
    session = prepare(model.eval(), config, data[0], Batches(model, data))
    FoldBatchNorm().run(session)
    return session


def quantize(model, data, passes=PASSES, bits='w4a4'):
    return quantize_detector(
        model.eval(), data, dict(bits=bits, rules=RULES, passes=passes)
    )


@pytest.mark.parametrize('kind', [Attending, Windows])
def test_the_float_model_stays(kind):
    data = batches()
    model = kind()
    session = prepared(model, data)
    plain = {n: p.clone() for n, p in model.named_parameters()}
    with float_mode(model):
        before = outputs(model, data)
        MixHeads().run(session)
        after = outputs(model, data)
    assert (after - before).norm() < 1e-5 * before.norm()
    assert [r.kind for r in session.records] == ['qk', 'pv']
    assert all(r.gain > 1.05 for r in session.records)
    moved = [
        n.split('.')[-2]
        for n, p in model.named_parameters()
        if not torch.equal(p, plain[n])
    ]
    expected = {'q', 'k', 'v', 'out'} if kind is Attending else {'qkv', 'proj'}
    assert set(moved) == expected


def test_the_quantized_model_is_nearer():
    data = batches()
    exact = outputs(Attending().eval(), data)
    rules = [
        *RULES,
        dict(match='@matmul', act=dict(bits=4, granularity='channel')),
        dict(match='@softmax', act=dict(bits=8)),
    ]
    off = []
    for passes in (PASSES, [PASSES[0], *PASSES[2:]]):
        model = Attending()
        quantize_detector(
            model.eval(), data, dict(bits='w8a8', rules=rules, passes=passes)
        )
        off.append(float((outputs(model, data) - exact).norm()))
    assert off[0] < 0.8 * off[1]


def test_what_is_bent_in_between_stays():
    """A ReLU lets queries be scaled, but not be mixed."""
    data = batches()
    model = Attending(bent=True)
    session = prepared(model, data)
    plain = {n: p.clone() for n, p in model.named_parameters()}
    MixHeads().run(session)
    assert [r.kind for r in session.records] == ['pv']
    assert [n for n in session.notes if n.startswith('MixHeads: qk stays')]
    for name in ('q.weight', 'k.weight', 'q.bias', 'k.bias'):
        assert torch.equal(model.get_parameter(name), plain[name])
    assert not torch.equal(model.v.weight, plain['v.weight'])


class Packed(BaseModel):
    """One layer makes queries, which are bent, keys and values."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 2, 2)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.qk, self.pv = MatMul(), MatMul()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.embed(torch.stack(list(inputs)).float()).flatten(2).mT
        parts = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        p = self.qk(q.relu(), k.mT * 0.3).softmax(-1)
        return self.out(self.pv(p, v).transpose(1, 2).flatten(2))


class Chained(BaseModel):
    """What reads the values of one attention makes queries of the next."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 2, 2)
        for name in ('q', 'k', 'v', 'out', 'k2', 'v2', 'out2'):
            setattr(self, name, nn.Linear(16, 16))
        for name in ('qk', 'pv', 'qk2', 'pv2'):
            setattr(self, name, MatMul())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.embed(torch.stack(list(inputs)).float()).flatten(2).mT
        y = x
        for n, q in (('', self.q), ('2', self.out)):
            product, sums = getattr(self, f'qk{n}'), getattr(self, f'pv{n}')
            q, k, v = (
                one.unflatten(-1, (2, 8)).transpose(1, 2)
                for one in (
                    q(y),
                    getattr(self, f'k{n}')(x),
                    getattr(self, f'v{n}')(x),
                )
            )
            p = product(q, k.mT * 0.3).softmax(-1)
            y = sums(p, v).transpose(1, 2).flatten(2)
        return self.out2(y)


@pytest.mark.parametrize(
    ('kind', 'mixed', 'why'),
    [
        (Packed, ['pv'], 'qk stays: mixing moved its output'),
        (Chained, ['qk', 'qk', 'pv'], 'pv stays: out makes the channels of'),
    ],
)
def test_layers_that_several_heads_share(kind, mixed, why):
    data, model = batches(), kind()
    session = prepared(model, data)
    with float_mode(model):
        before = outputs(model, data)
        MixHeads().run(session)
        after = outputs(model, data)
    assert (after - before).norm() < 1e-5 * before.norm()
    assert [r.kind for r in session.records] == mixed
    (said,) = [n for n in session.notes if n.startswith('MixHeads')]
    assert why in said


@pytest.mark.parametrize('span', [2, 3])
def test_channels_of_very_different_size(span):
    """Values from 10^-s to 10^s, read by weights from 10^s to 10^-s."""
    data, off = batches(), []
    for passes in (PASSES, [PASSES[0], *PASSES[2:]]):
        model = Attending()
        strong = torch.logspace(-span, span, 8).repeat(2)[:, None]
        with torch.no_grad():
            model.v.weight.mul_(strong)
            model.v.bias.mul_(strong[:, 0])
            model.out.weight.div_(strong.T)
        exact = outputs(model.eval(), data)
        session = quantize(model, data, passes, 'w8a8')
        assert all(r.gain > 1 for r in session.records)
        off.append(float((outputs(model, data) - exact).norm()))
    assert off[0] < off[1]


def test_what_would_not_gain_stays(monkeypatch):
    monkeypatch.setattr(mix_heads, 'gain', lambda *_: 0.9)
    data, model = batches(), Attending()
    session = prepared(model, data)
    plain = {n: p.clone() for n, p in model.named_parameters()}
    MixHeads().run(session)
    assert not session.records
    assert [n for n in session.notes if 'error would not fall' in n]
    assert all(torch.equal(p, plain[n]) for n, p in model.named_parameters())


class Folded(Attending):
    """Heads lie along the axis of images."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.embed(torch.stack(list(inputs)).float()).flatten(2).mT
        q, k, v = (
            y.unflatten(-1, (2, 8)).transpose(1, 2).flatten(0, 1)
            for y in (self.q(x), self.k(x), self.v(x))
        )
        p = self.qk(q, k.mT * 0.1).softmax(-1)
        y = self.pv(p, v).unflatten(0, (-1, 2))
        return self.out(y.transpose(1, 2).flatten(2))


def test_batches_of_other_sizes():
    data = batches()
    data[-1] = {k: v * 2 for k, v in data[-1].items()}
    session = quantize(Folded(), data)
    assert not session.records
    said = [n for n in session.notes if 'whose size changes' in n]
    assert len(said) == 2


def test_positions_apart():
    """What is added to queries and keys is mixed as they are."""
    model = random_detector('configs/digits/detr_digits.py')
    data = noise_batches(2, (64, 96))
    passes = [PASSES[0], dict(type='SplitPositions'), *PASSES[1:]]
    session = prepared(model, data, passes)
    plain = {n: p.clone() for n, p in model.named_parameters()}
    batch = model.data_preprocessor(dict(data[0]), False)
    with torch.no_grad(), float_mode(model):
        before = model(**batch, mode='tensor')[0]
        MixHeads().run(session)
        after = model(**batch, mode='tensor')[0]
    assert (after - before).norm() < 1e-4 * before.norm()
    kinds = [r.kind for r in session.records]
    assert kinds.count('qk') == kinds.count('pv') > 2
    moved = {
        name.split('.')[-2]
        for name, p in model.named_parameters()
        if not torch.equal(p, plain[name])
    }
    assert {'q_pos', 'k_pos', 'q_proj', 'v_proj', 'out_proj'} <= moved


@pytest.mark.parametrize('pairs', [['qk'], ['pv']])
def test_pairs_are_chosen(pairs):
    passes = [PASSES[0], dict(type='MixHeads', pairs=pairs), *PASSES[2:]]
    session = quantize(Attending(), batches(), passes)
    assert [r.kind for r in session.records] == pairs


@pytest.mark.parametrize(
    ('rule', 'kinds'),
    [
        (dict(match='qk', skip=True), ['pv']),
        (dict(match='@matmul', skip=True), []),
        (dict(match='q', skip=True), ['qk', 'pv']),  # its weight stays float
    ],
)
def test_what_rules_leave_float(rule, kinds):
    session = quantize_detector(
        Attending().eval(),
        batches(),
        dict(bits='w4a4', rules=[*RULES, rule], passes=PASSES),
    )
    assert [r.kind for r in session.records] == kinds
    said = [n for n in session.notes if 'an operand stays float' in n]
    assert len(said) == 2 - len(kinds)


def test_errors_of_weights_count():
    """Strong rows that the inputs do not use are not spread over channels."""
    off = []
    for mean_square in (0.0, 1.0):
        model = Attending()
        with torch.no_grad():
            model.embed.weight[8:] *= 0.01
        session = prepared(model, batches())
        (heads,) = MixHeads(['pv'])._heads(session)
        with torch.no_grad(), float_mode(model):
            seen = mix_heads._watch(session, [heads])
            assert seen.inputs['v'] == pytest.approx(mean_square_of_v(model))
            inputs = dict(v=seen.inputs['v'] * mean_square)
            seen = dataclasses.replace(seen, inputs=inputs)
            plan = mix_heads._plan(session, heads, seen)
            mix_heads._mix(session, [plan])
        weight = model.v.weight.detach().double().view(2, 8, -1)
        read = model.out.weight.detach().double().T.reshape(2, 8, -1)
        # of a step in proportion to the norm of the row
        off.append(
            float((weight.square().sum(2) * read.square().sum(2)).sum())
        )
    assert off[1] < 0.9 * off[0]


def mean_square_of_v(model):
    found = []
    hook = model.v.register_forward_pre_hook(
        lambda _, args: found.append(args[0].detach())
    )
    outputs(model, batches())
    hook.remove()
    return float(torch.cat(found).square().mean())


def test_what_moves_an_output_is_put_back(monkeypatch):
    """It alone, and with its weights, and the note says by how much."""

    def rows(layer, places, mix):
        mixed_rows(layer, places, mix * (2 if layer is model.q else 1))

    mixed_rows = mix_heads.mixed_rows
    monkeypatch.setattr(mix_heads, 'mixed_rows', rows)
    data, model = batches(), Attending()
    session = prepared(model, data)
    plain = {n: p.clone() for n, p in model.named_parameters()}
    MixHeads().run(session)
    assert [r.kind for r in session.records] == ['pv']
    # twice the queries give products that are off by their own size
    (said,) = [n for n in session.notes if n.startswith('MixHeads')]
    assert said == (
        'MixHeads: qk stays: mixing moved its output by 1 of its size '
        '(0.001 is allowed)'
    )
    for name in ('q.weight', 'k.weight', 'q.bias', 'k.bias'):
        assert torch.equal(model.get_parameter(name), plain[name])


def test_what_the_first_image_does_not_reach_is_put_back(monkeypatch):
    given = mix_heads._outputs
    monkeypatch.setattr(
        mix_heads,
        '_outputs',
        lambda *args: {n: y for n, y in given(*args).items() if n != 'qk'},
    )
    session = prepared(Attending(), batches())
    MixHeads().run(session)
    assert [r.kind for r in session.records] == ['pv']
    assert session.notes[-1] == (
        'MixHeads: qk stays: the first calibration image does not reach it'
    )


def test_nothing_to_mix():
    session = quantize(Tiny(), batches())
    assert not session.records
    assert any('no attention whose channels' in n for n in session.notes)


def test_arguments():
    with pytest.raises(ValueError, match='pairs is empty'):
        MixHeads(pairs=[])
    with pytest.raises(ValueError, match='Allowed: pv, qk'):
        MixHeads(pairs=['vo'])
    with pytest.raises(ValueError, match='pairs must be a list'):
        MixHeads(pairs='qk')
    for earlier in ('ScaleInputs', 'Observe'):
        passes = [PASSES[0], dict(type=earlier), dict(type='MixHeads')]
        with pytest.raises(QuantConfigError, match='MixHeads'):
            quantize(Attending(), batches(), passes)


def test_infinite_inputs():
    data = batches()
    data[1]['inputs'][0][0, 0, 0] = float('inf')
    with pytest.raises(NumericError, match='qk: an input holds NaN or Inf'):
        quantize(Attending(), data)


def test_reload(tmp_path):
    data = batches()
    model = Attending()
    save_quantized(quantize(model, data), tmp_path / 'q.pth')
    fresh = load_quantized(Attending(), tmp_path / 'q.pth')
    with torch.no_grad():
        for one in data:
            assert torch.equal(model(**one), fresh(**one))


def test_ranks_share_their_moments(tmp_path):
    data = batches(4)

    def gains(rank):
        mine = data if rank is None else data[rank::2]
        return [r.gain for r in quantize(Attending(), mine).records]

    found = on_ranks(gains, 2, tmp_path)
    assert found[0] == found[1] == pytest.approx(gains(None), rel=1e-5)
