# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scales that blocks are searched for, against plain sums in float64."""

import copy

import pytest
import torch
from rank_kit import on_ranks
from scoring import Scoring, batches, scores_adapter

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Batches, ResumeStore
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import named_tensors, quantizing
from mmdet_ptq.losses import DetectionLoss
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.structures import DetectionOutputs


@pytest.fixture(scope='module', autouse=True)
def adapter():
    with scores_adapter():
        yield


UNIFORM = dict(type='UniformQuantizer', symmetric=True)
RULES = [
    dict(
        match='backbone.*',
        weight=dict(UNIFORM, granularity='tensor'),
        act=dict(UNIFORM),
    ),
]
MINMAX = [
    dict(type='Observe', observer=dict(type='MinMaxObserver')),
    dict(type='SetRanges', weight_observer=dict(type='MinMaxObserver')),
]
SEARCH = dict(
    type='SearchScales',
    objective='block',
    candidates='ranges',
    count=16,
    elimination=0.5,
    loss=dict(type='FisherLoss', damping=0.5),
)


def searched(**args):
    passes = [*MINMAX, dict(SEARCH, **args)]
    cfg = dict(bits='w3a3', rules=RULES, passes=passes)
    return quantize_detector(Scoring().eval(), batches(), cfg)


def fake(x, top, bits=3):
    """Symmetric: the largest value is half a step below the end."""
    scale = top / (2 ** (bits - 1) - 0.5)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return (x / scale).round().clamp(low, high) * scale


def by_hand(elimination, count=16, rounds=1, images=3):
    """The whole search in float64, one nested loop after the other."""
    model = Scoring().double()
    block, head = model.backbone[0], model.bbox_head
    w1, w2 = block.first.weight.detach(), block.second.weight.detach()
    raw = [b['inputs'][0][0].double() for b in batches()]
    everyone = [model.stem(x).detach() for x in raw]
    inputs = everyone[:images]

    def hidden(x):
        return torch.relu(x @ w1.mT + block.first.bias).detach()

    def out(x, s):
        """``s`` has the end of each grid, None where float."""
        a = x if s[1] is None else fake(x, s[1])
        w = w1 if s[0] is None else fake(w1, s[0])
        h = torch.relu(a @ w.mT + block.first.bias)
        h = h if s[3] is None else fake(h, s[3])
        w = w2 if s[2] is None else fake(w2, s[2])
        return (x + h @ w.mT + block.second.bias).detach()

    def tops(xs):
        return [
            float(w1.abs().max()),
            max(float(x.abs().max()) for x in xs),
            float(w2.abs().max()),
            max(float(hidden(x).abs().max()) for x in xs),
        ]

    ends, base = tops(everyone), tops(inputs)
    grads = []
    for x in inputs:
        z = out(x, ends).requires_grad_()
        exact = head(out(x, [None] * 4)).detach()
        loss_of(head(z), exact).backward()
        grads.append(z.grad)
    mean = torch.cat(grads).square().mean()
    weights = [0.5 * g**2 / mean + 0.5 for g in grads]

    def errors(s):
        return [
            w * (out(x, s) - out(x, [None] * 4)) ** 2
            for x, w in zip(inputs, weights, strict=True)
        ]

    now = list(ends)
    on = [False] * 4
    for _ in range(rounds):
        masks = []
        for e in errors(now):
            order = e.flatten().sort().values
            rank = int(elimination * e.numel())
            masks.append(e > order[rank - 1] if rank else torch.ones_like(e))
        for i in range(4):
            on[i] = True
            layer = i // 2 * 2
            on[layer] = on[layer + 1] = True

            def total(end, i=i, masks=masks):
                s = [e if o else None for e, o in zip(now, on, strict=True)]
                s[i] = end
                parts = zip(errors(s), masks, strict=True)
                return float(sum((e * m).sum() for e, m in parts))

            tried = [base[i] * (0.01 + 1.19 * c / count) for c in range(count)]
            now[i] = min([now[i], *tried], key=total)
    return now


def loss_of(logits, exact):
    loss = DetectionLoss()
    targets = loss.targets([DetectionOutputs('h', exact, 'sigmoid')])
    return loss([DetectionOutputs('h', logits, 'sigmoid')], targets)


def ends_found(session):
    layers = [session.layers[f'backbone.0.{n}'] for n in ('first', 'second')]
    found = []
    for layer in layers:
        for q in (layer.weight_quantizer, layer.act_quantizers['input']):
            found.append(float(q.scale) * 3.5)
    return found


@pytest.mark.parametrize(
    'args',
    [
        dict(elimination=0.0),
        dict(elimination=0.5),
        dict(elimination=0.9, rounds=2),
        dict(elimination=0.5, images=2),
    ],
    ids=str,
)
def test_against_nested_loops(args):
    session = searched(**args)
    assert [u.name for u in session.graph.units][1:2] == ['backbone.0']
    expected = by_hand(**args)
    assert ends_found(session) == pytest.approx(expected, rel=1e-5)
    found = [r for r in session.records if r.tensor]
    assert [(r.unit, r.tensor) for r in found] == [
        ('backbone.0.first', 'weight'),
        ('backbone.0.first', 'input'),
        ('backbone.0.second', 'weight'),
        ('backbone.0.second', 'input'),
    ]
    assert all(r.after <= r.before for r in found)


def test_what_is_left_out_changes_the_choice():
    """Otherwise the tests above would not see it."""
    assert by_hand(0.0) != by_hand(0.9, rounds=1)


def test_activations_may_come_first():
    session = searched(first='activations')
    tensors = [r.tensor for r in session.records]
    assert tensors == ['input', 'weight'] * 2


def test_it_lowers_the_error_of_the_block():
    passes = [*MINMAX]
    cfg = dict(bits='w3a3', rules=RULES, passes=passes)
    plain = quantize_detector(Scoring().eval(), batches(), cfg)
    session = searched(elimination=0.0, loss=dict(SEARCH['loss'], damping=1.0))
    exact = Scoring().eval()

    def error(model):
        total = 0.0
        for batch in batches():
            x = exact.stem(batch['inputs'][0])
            off = model.backbone(x) - exact.backbone(x)
            total += float(off.square().sum())
        return total

    names = ['backbone.0.first', 'backbone.0.second']
    with torch.no_grad(), quantizing(session.layers, names, names):
        assert error(session.model) < 0.9 * error(plain.model)


@pytest.mark.parametrize(
    'args, match',
    [
        (dict(candidates='progressive'), "must be 'ranges'"),
        (dict(elimination=1.0), 'elimination'),
        (dict(images=0), 'images'),
    ],
)
def test_bad_input(args, match):
    with pytest.raises(QuantConfigError, match=match):
        searched(**args)


def test_what_cannot_be_searched():
    rules = copy.deepcopy(RULES)
    rules[0]['act'] = dict(type='PowerOfTwoQuantizer')
    cfg = dict(bits='w4a4', rules=rules, passes=[*MINMAX, SEARCH])
    with pytest.raises(QuantConfigError, match='cannot be searched'):
        quantize_detector(Scoring().eval(), batches(), cfg)


class Killed(Exception):
    pass


def run(path, rank=0, world=1, resume=False, after=None):
    """One rank's share of a run, which may be killed at a unit."""
    model = Scoring().eval()
    passes = [*MINMAX, SEARCH]
    rules = [dict(RULES[0], match='*')]
    cfg = parse_quant_cfg(dict(bits='w3a3', rules=rules, passes=passes))
    seen = []

    def progress(stage, item, done, total):
        if stage == 'scales':
            seen.append(item)
            if len(seen) == after:
                raise Killed

    feed = Batches(model, batches()[rank::world])
    store = ResumeStore(path, 'one') if path else None
    session = run_quantization(
        model, cfg, batches()[0], feed, progress, store, resume
    )
    return session, seen


def test_a_run_that_was_killed_goes_on(tmp_path):
    expected, seen = run(None)
    assert seen == ['stem', 'backbone.0']
    path = tmp_path / 'resume.pth'
    with pytest.raises(Killed):
        run(path, after=2)
    session, seen = run(path, resume=True)
    assert seen == ['backbone.0']
    assert session.records == expected.records
    found, wanted = (named_tensors(s.model) for s in (session, expected))
    assert all(torch.equal(t, wanted[n]) for n, t in found.items())


def _of_rank(rank):
    session, _ = run(None, rank, 2)
    return ends_found(session), [r.to_dict() for r in session.records]


def test_ranks_find_what_one_finds(tmp_path):
    ends = ends_found(run(None)[0])
    for found, _ in (ranks := on_ranks(_of_rank, 2, tmp_path)):
        assert found == pytest.approx(ends, rel=1e-5)
    assert ranks[0] == ranks[1]
