# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Channels that are scaled, and the detector that stays as it was."""

import pytest
import torch
from mmengine.model import BaseModel
from rank_kit import on_ranks
from torch import nn
from two_levels import MINMAX, RULES, Tiny, batches

from mmdet_ptq import load_quantized, quantize_detector
from mmdet_ptq.apis import save_quantized
from mmdet_ptq.calibration.feed import Batches
from mmdet_ptq.engine.progress import restore, snapshot
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.errors import CalibrationError, NumericError, QuantConfigError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes import EqualizeChannels, FoldBatchNorm
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.records import EqualizationRecord
from mmdet_ptq.registry import DECOMPOSED
from mmdet_ptq.surgery import RoutedProducts, SplitMultiheadAttention
from mmdet_ptq.testing import noise_batches, random_detector

PASSES = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=MINMAX),
    dict(type='SetRanges', weight_observer=MINMAX),
]


class Attending(BaseModel):
    """A norm, attention and two layers, without the residuals."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.norm = nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.norm.weight.copy_(torch.logspace(-1, 1, 8))
            self.fc1.weight.mul_(torch.logspace(-1, 1, 16)[:, None])

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.embed(torch.stack(list(inputs)).float())
        x = self.norm(x.flatten(2).mT)
        x = self.attn(x, x, x)[0]
        return self.fc2(self.fc1(x).relu_())


class Folding(nn.Module):
    """Attention of heads that lie along the axis of images."""

    def __init__(self, heads):
        super().__init__()
        self.count = heads
        self.q, self.k, self.v, self.out = (
            nn.Linear(4 * heads, 4 * heads) for _ in range(4)
        )

    def forward(self, x):
        def fold(t):
            t = t.view(len(x), -1, self.count, 4).transpose(1, 2)
            return t.reshape(len(x) * self.count, -1, 4)

        q, k, v = fold(self.q(x)), fold(self.k(x)), fold(self.v(x))
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        y = y.view(len(x), self.count, -1, 4).transpose(1, 2)
        return self.out(y.reshape(x.shape))


@DECOMPOSED.implements(Folding)
class SplitFolding(RoutedProducts, Folding):
    pass


class Folded(BaseModel):
    def __init__(self, heads):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 4 * heads, 2, 2)
        self.attn = Folding(heads)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.embed(torch.stack(list(inputs)).float())
        return self.attn(x.flatten(2).mT)


def before_passes(model, data, passes=PASSES, rules=RULES, bits='w4a4'):
    config = parse_quant_cfg(dict(bits=bits, rules=rules, passes=passes))
    session = prepare(model.eval(), config, data[0], Batches(model, data))
    FoldBatchNorm().run(session)
    return session


def float_outputs(model, data):
    found = []

    def walk(item):
        if isinstance(item, torch.Tensor):
            found.append(item.flatten())
        elif isinstance(item, list | tuple):
            [walk(one) for one in item]

    with torch.no_grad(), float_mode(model):
        for batch in data:
            batch = model.data_preprocessor(dict(batch), False)
            walk(model(**batch, mode='tensor'))
    return torch.cat(found)


def run(session, **kwargs):
    one = EqualizeChannels(**kwargs)
    one.prepare(session)
    with torch.no_grad():
        one.run(session)
    return session.records


@pytest.mark.parametrize('choose', ['closed', 'error'])
@pytest.mark.parametrize('kind', [Tiny, Attending])
def test_the_float_model_stays(kind, choose):
    model, data = kind(), batches()
    session = before_passes(model, data)
    before = float_outputs(model, data)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    records = run(session, choose=choose)
    assert any(r.ratio > 1.2 for r in records)
    assert not all(
        torch.equal(p, weights[n]) for n, p in model.named_parameters()
    )
    after = float_outputs(model, data)
    assert (after - before).norm() < 1e-6 * before.norm()
    assert [r.kind for r in records] == (
        ['layer'] * 3
        if kind is Tiny
        else ['norm', 'layer', 'qk', 'pv', 'layer']
    )


@pytest.mark.parametrize('kind', ['layer', 'norm', 'qk', 'pv'])
def test_kinds_are_chosen(kind):
    session = before_passes(Attending(), batches())
    records = run(session, choose='closed', pairs=[kind])
    assert {r.kind for r in records} == {kind}
    by = 'weights' if kind == 'layer' else 'activations'
    assert {r.by for r in records} == {by}


def test_a_detector_of_mmdetection_stays():
    torch.manual_seed(0)
    model = random_detector('configs/digits/detr_digits.py')
    data = noise_batches(1, (64, 96))
    session = before_passes(model, data)
    before = float_outputs(model, data)
    records = run(session, choose='closed')
    assert {r.kind for r in records} == {'layer', 'qk', 'pv'}
    assert len(records) == 56
    after = float_outputs(model, data)
    assert (after - before).norm() < 1e-5 * before.norm()


def test_weights_by_hand():
    """Rows of 4 and 1, columns of 1 and 4: factors 2 and 1/2."""

    class Two(BaseModel):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 1)
            with torch.no_grad():
                self.one.weight.copy_(torch.tensor([[4.0, 2], [-1, 0]]))
                self.one.bias.copy_(torch.tensor([8.0, 8]))
                self.two.weight.copy_(torch.tensor([[-1.0, 4]]))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            x = torch.stack(list(inputs)).flatten(2)[..., :2]
            return self.two(self.one(x).relu())

    model = Two()
    run(before_passes(model, batches(1)), choose='closed')
    assert model.one.weight.tolist() == [[2, 1], [-2, 0]]
    assert model.one.bias.tolist() == [4, 16]
    assert model.two.weight.tolist() == [[-2, 2]]


def test_error_is_that_of_the_quantized_readers():
    """Of no factors, against a reference without any part of the pass."""
    model, data = Attending(), batches(2)
    session = before_passes(model, data)
    assert isinstance(model.attn, SplitMultiheadAttention)
    seen = []
    handle = model.fc2.register_forward_pre_hook(
        lambda m, args: seen.append(args[0].clone())
    )
    float_outputs(model, data)
    handle.remove()
    x, weight = torch.cat(seen), model.fc2.weight.detach().clone()

    def quantized(t, bits=4, **kwargs):
        quantizer = UniformQuantizer(bits, **kwargs)
        rows = quantizer.granularity.rows(t)
        quantizer.set_range(rows.amin(1), rows.amax(1))
        return quantizer(t)

    exact = x @ weight.T
    bias = model.fc2.bias.detach()
    rounded = quantized(x, axis=-1) @ _l2(weight).T
    expected = (rounded - exact).square().sum() / (exact + bias).square().sum()
    record = run(session, pairs=['layer'])[-1]
    assert record.before == pytest.approx(float(expected), rel=1e-4)
    assert record.after < record.before


def _l2(weight):
    """Each row to 4 bits, its range that of least squared error."""
    from mmdet_ptq.observers import search_weight_range

    quantizer = UniformQuantizer(
        4, granularity='channel', axis=0, role='weight'
    )
    quantizer.set_range(*search_weight_range(weight, quantizer))
    return quantizer(weight)


def test_what_is_even_is_left_as_it_is():
    class Even(BaseModel):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            with torch.no_grad():
                self.one.weight.copy_(torch.eye(4))
                self.one.bias.zero_()
                self.two.weight.copy_(torch.eye(4))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            x = torch.stack(list(inputs)).flatten(2)[..., :4]
            # all channels the same
            return self.two(self.one(x[..., :1].expand_as(x)))

    session = before_passes(Even(), batches(2))
    (record,) = run(session)
    assert (record.by, record.ratio) == ('', 1)
    assert record.before == record.after


def test_one_scale_of_a_weight_counts():
    """Rows that differ a thousandfold, in a tensor with one scale."""
    model, data = Attending(), batches(2)
    with torch.no_grad():
        model.fc1.weight[::2] *= 1e-3
        model.fc2.weight[:, ::2] *= 1e3
    rules = [dict(match='*', weight=dict(granularity='tensor'), act={})]
    session = before_passes(model, data, rules=rules, bits='w4a8')
    record = run(session, pairs=['layer'])[-1]
    assert record.unit == 'fc1 -> fc2'
    assert record.after < 0.1 * record.before


def test_one_reader_of_two_makers():
    """The second is tried where the first has its factors."""

    class Beside(BaseModel):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
            self.c = nn.Conv2d(12, 4, 3)
            with torch.no_grad():
                uneven = torch.logspace(-1, 1, 6).view(-1, 1, 1, 1)
                self.a.weight.mul_(uneven)
                self.b.weight.mul_(uneven)
                self.c.weight.div_(uneven.repeat(2, 1, 1, 1).view(1, -1, 1, 1))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            x = torch.stack(list(inputs)).float()
            return self.c(torch.cat([self.a(x), self.b(x)], 1).relu())

    first, second = run(before_passes(Beside(), batches()))
    assert first.after < first.before
    assert second.before == pytest.approx(first.after, rel=1e-3)
    assert second.after < second.before


@pytest.mark.parametrize('choose', ['closed', 'error'])
def test_nan_names_the_layer(choose):
    data = batches()
    session = before_passes(Attending(), data)
    data[2]['inputs'][0][0, 0, 0] = float('nan')
    with pytest.raises(NumericError, match=r'attn\.q_proj: its input'):
        run(session, choose=choose)


def test_the_given_exponent_is_tried_too():
    """Weights have bits to spare, so activations should be quite even."""
    found = []
    for alpha in (0.5, 1.0):
        model = Attending()
        with torch.no_grad():
            model.fc2.weight.copy_(model.fc2.weight.sign())
        session = before_passes(model, batches(), bits='w8a4')
        found += run(session, only=['fc1'], alpha=alpha)
    assert [r.alpha for r in found] == [0.75, 1.0]
    assert found[1].after < found[0].after


def test_notes_say_what_was_not_scaled():
    session = before_passes(Attending(), batches(1))
    run(session)
    assert 'not equalized, LayerNorm reads it: embed' in session.notes
    assert (
        'not equalized, it is an output of the detector: fc2' in session.notes
    )


def test_many_heads_along_the_first_axis():
    records = run(before_passes(Folded(10), batches(2)))
    assert [r.kind for r in records] == ['layer', 'qk', 'pv']
    assert all(0 < r.after <= r.before for r in records)


def test_heads_along_the_first_axis_of_batches_of_several_sizes():
    data = batches(3)
    data[1] = {key: data[1][key] + data[2][key] for key in data[1]}
    session = before_passes(Folded(2), data)
    match = 'attn.matmul_qk: .* 2 in the first batch and 4 in another'
    with pytest.raises(CalibrationError, match=match):
        run(session)
    assert run(session, pairs=['layer', 'norm'])


def test_only_some():
    session = before_passes(Attending(), batches(1))
    (record,) = run(session, choose='closed', only=['fc*1'])
    assert record.unit == 'fc1 -> fc2'
    assert not [n for n in session.notes if 'equalized' in n]


@pytest.mark.parametrize(
    'only, match',
    [
        (['embed'], 'embed cannot be scaled .*: LayerNorm reads it; leave'),
        (['fc*'], 'fc2 cannot be scaled .*: it is an output'),
        (['fc_1'], "unknown layer or norm 'fc_1'.*fc1"),
    ],
)
def test_what_is_asked_for_has_to_be_exact(only, match):
    passes = [PASSES[0], dict(type='EqualizeChannels', only=only), *PASSES[1:]]
    with pytest.raises(QuantConfigError, match=match):
        before_passes(Attending(), batches(1), passes)


@pytest.mark.parametrize(
    'kwargs, match',
    [
        (dict(pairs=['conv']), "pairs 'conv'"),
        (dict(pairs='layer'), 'pairs'),
        (dict(pairs=[]), 'pairs is empty'),
        (dict(only=[]), 'only is empty'),
        (dict(choose='best'), "choose 'best'"),
        (dict(alpha=1.5), 'alpha must be a number from 0 to 1'),
        (dict(only='fc1'), 'only must be a list of strings'),
    ],
)
def test_bad_arguments(kwargs, match):
    passes = [PASSES[0], dict(type='EqualizeChannels', **kwargs), *PASSES[1:]]
    with pytest.raises(QuantConfigError, match=match):
        parse_quant_cfg(dict(bits='w4a4', rules=RULES, passes=passes))


@pytest.mark.parametrize(
    'order, match',
    [
        ([1, 0, 2, 3], 'needs what FoldBatchNorm gives'),
        ([0, 2, 1, 3], 'comes after Observe'),
    ],
)
def test_its_place(order, match):
    found = [PASSES[0], dict(type='EqualizeChannels'), *PASSES[1:]]
    with pytest.raises(QuantConfigError, match=match):
        before_passes(Tiny(), batches(1), [found[i] for i in order])


def test_reload(tmp_path):
    data = batches()
    model = Attending().eval()
    quant_cfg = dict(bits='w4a8', rules=RULES, passes=PASSES, equalize=True)
    session = quantize_detector(model, data, quant_cfg)
    assert any(r.by for r in session.records)
    save_quantized(session, tmp_path / 'q.pth')
    fresh = load_quantized(Attending(), tmp_path / 'q.pth')
    with torch.no_grad():
        for one in data:
            assert torch.equal(model(**one), fresh(**one))


def test_resume_after_it():
    """What a resume file holds gives the scaled model."""
    session = before_passes(Attending(), batches())
    run(session)
    session.stats.start({}, [], lambda _: MINMAX, False, session.device)
    again = before_passes(Attending(), batches())
    restore(again, snapshot(session), {})
    assert again.records == session.records
    found = again.model.state_dict()
    for name, tensor in session.model.state_dict().items():
        assert torch.equal(tensor, found[name]), name


def test_errors_of_ranks_are_of_the_size_of_one(tmp_path):
    def errors(_):
        session = before_passes(Attending(), batches(2))
        EqualizeChannels().run(session)
        found = [
            r for r in session.records if isinstance(r, EqualizationRecord)
        ]
        return [(r.before, r.after) for r in found]

    one = errors(0)
    assert one and all(before > 0 for before, _ in one)
    # both have the same images
    assert on_ranks(errors, 2, tmp_path) == [one, one]
