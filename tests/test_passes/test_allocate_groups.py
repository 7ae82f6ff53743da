# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Numbers of groups, against every choice there is."""

import itertools
import sys
from math import nan

import pytest
import torch
from rank_kit import on_ranks
from scoring import Scoring, batches, scores_adapter

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.calibration import Batches, ResumeStore
from mmdet_ptq.cost import cost_of
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.passes import AllocateGroups
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.records import GroupsRecord

LAYERS = ['stem', 'backbone.0.first', 'backbone.0.second']
RULES = [
    dict(
        match='*',
        weight=dict(type='UniformQuantizer', granularity='channel'),
        act=dict(type='InstanceGroupQuantizer', num_groups=3),
    ),
]
PASSES = [
    dict(type='Observe'),
    dict(type='SetRanges', weight_observer=dict(type='MinMaxObserver')),
]
ALLOCATE = dict(type='AllocateGroups', groups=3, candidates=[1, 2, 3, 5])
CANDIDATES = ALLOCATE['candidates']


@pytest.fixture(scope='module', autouse=True)
def adapter():
    with scores_adapter():
        yield


def config(*passes, rules=RULES):
    passes = [*PASSES, *passes]
    return dict(bits='w8a3', rules=rules, passes=passes)


def quantized(*passes, **kwargs):
    cfg = config(*passes, **kwargs)
    return quantize_detector(Scoring().eval(), batches(), cfg)


def logits_of(model, float_layer=None):
    """Probabilities on each image, with one layer left float if named."""
    if float_layer is not None:
        layer = model.get_submodule(float_layer)
        quantizer, weight = layer.act_quantizers['input'], layer.weight
        layer.set_quantizer('input', None)
        layer.weight = Scoring().get_submodule(float_layer).weight
    with torch.no_grad():
        found = [model(b['inputs']).double().sigmoid() for b in batches()]
    if float_layer is not None:
        layer.set_quantizer('input', quantizer)
        layer.weight = weight
    return found


def perturbation(name, groups):
    """With plain runs that give one layer so many groups by a rule."""
    rule = dict(match=name, act=dict(num_groups=groups))
    model = quantized(rules=[*RULES, rule]).model
    total = []
    for p, q in zip(logits_of(model, name), logits_of(model), strict=True):
        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        total.append(float(kl.sum(-1).mean()))
    return sum(total) / len(total)


def bops(name, groups):
    """Partial sums of 5 positions, and the distances to each grid."""
    outputs = dict(zip(LAYERS, (6, 8, 6), strict=True))[name]
    inputs = dict(zip(LAYERS, (6, 6, 8), strict=True))[name]
    return 32 * (5 * outputs * (groups - 1) + 2 * inputs * groups)


def test_the_best_of_all_choices():
    session = quantized(ALLOCATE)
    records = [r for r in session.records if isinstance(r, GroupsRecord)]
    assert [r.unit for r in records] == LAYERS
    psi = {n: [perturbation(n, g) for g in CANDIDATES] for n in LAYERS}
    for record in records:
        assert record.candidates == CANDIDATES and record.port == 'input'
        assert record.perturbations == pytest.approx(
            # float32 outputs near 1 have steps of 1e-7
            psi[record.unit],
            rel=1e-4,
            abs=1e-7,
        )
        costs = [bops(record.unit, g) for g in CANDIDATES]
        assert record.bops == [c - costs[0] for c in costs]
    budget = sum(bops(n, 3) for n in LAYERS)
    found = []
    for choice in itertools.product(range(4), repeat=3):
        pairs = list(zip(LAYERS, choice, strict=True))
        if sum(bops(n, CANDIDATES[k]) for n, k in pairs) <= budget:
            found.append((sum(psi[n][k] for n, k in pairs), choice))
    best = [CANDIDATES[k] for k in min(found)[1]]
    assert [r.groups for r in records] == best != [3, 3, 3]
    for name, groups in zip(LAYERS, best, strict=True):
        quantizer = session.layers[name].act_quantizers['input']
        assert quantizer.num_groups == groups == len(quantizer.low)
        spec = session.plan.layers[name].acts['input']
        assert spec.args['num_groups'] == groups
    fixed = quantized()

    def spent(one):
        cost = cost_of(one.model, one.graph, one.plan)
        return sum(cost['grouping'].values())

    assert spent(session) <= spent(fixed)


def test_one_candidate_gives_what_a_rule_gives():
    """Ranges are those of the same statistics."""
    session = quantized(dict(ALLOCATE, groups=5, candidates=[5]))
    rules = [*RULES, dict(match='*', act=dict(num_groups=5))]
    expected = named_tensors(quantized(rules=rules).model)
    found = named_tensors(session.model)
    assert all(torch.equal(t, expected[n]) for n, t in found.items())


def test_others_may_be_float():
    name = 'backbone.0.first'
    session = quantized(dict(ALLOCATE, others='float'))
    record = next(r for r in session.records if r.unit == name)
    rules = [RULES[0], dict(match=[n for n in LAYERS if n != name], skip=True)]
    psi = []
    for groups in CANDIDATES:
        rule = dict(match=name, act=dict(num_groups=groups))
        model = quantized(rules=[*rules, rule]).model
        total = []
        exact = logits_of(Scoring().eval())
        for p, q in zip(exact, logits_of(model), strict=True):
            kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            total.append(float(kl.sum(-1).mean()))
        psi.append(sum(total) / len(total))
    assert record.perturbations == pytest.approx(psi, rel=1e-3)


def test_it_reloads(tmp_path):
    session = quantized(ALLOCATE)
    save_quantized(session, tmp_path / 'q.pth')
    model = load_quantized(Scoring().eval(), tmp_path / 'q.pth')
    x = batches()[0]['inputs']
    assert torch.equal(model(x), session.model(x))


class Killed(Exception):
    pass


def test_a_run_that_was_killed_goes_on(tmp_path):
    expected = quantized(ALLOCATE)

    def run(resume, after=None):
        model = Scoring().eval()
        cfg = parse_quant_cfg(config(ALLOCATE))
        seen = []

        def progress(stage, item, done, total):
            if stage == 'grids':
                seen.append(item)
                if len(seen) == after:
                    raise Killed

        store = ResumeStore(tmp_path / 'resume.pth', 'one')
        data = batches()
        feed = Batches(model, data)
        session = run_quantization(
            model, cfg, data[0], feed, progress, store, resume
        )
        return session, seen

    with pytest.raises(Killed):
        run(False, 3)
    session, seen = run(True)
    assert seen == LAYERS[2:]
    assert session.records == expected.records
    found, wanted = (named_tensors(s.model) for s in (session, expected))
    assert all(torch.equal(t, wanted[n]) for n, t in found.items())


def _of_rank(rank):
    model = Scoring().eval()
    cfg = parse_quant_cfg(config(ALLOCATE))
    data = batches()[rank::2]
    session = run_quantization(model, cfg, batches()[0], Batches(model, data))
    tensors = {n: t.tolist() for n, t in named_tensors(model).items()}
    return tensors, [r.to_dict() for r in session.records]


def test_ranks_choose_what_one_chooses(tmp_path):
    session = quantized(ALLOCATE)
    tensors = named_tensors(session.model)
    tensors = {n: t.tolist() for n, t in tensors.items()}
    records = [r.to_dict() for r in session.records]
    for found, theirs in on_ranks(_of_rank, 2, tmp_path):
        assert found == tensors and theirs == records


def test_where_there_are_no_groups():
    rules = [dict(RULES[0], act=dict(type='UniformQuantizer'))]
    session = quantized(ALLOCATE, rules=rules)
    assert any('AllocateGroups: no input has' in n for n in session.notes)


@pytest.mark.parametrize(
    'args, match',
    [
        (dict(groups=0), 'groups'),
        (dict(candidates=[]), 'growing numbers'),
        (dict(candidates=[3, 2]), 'growing numbers'),
        (dict(groups=2, candidates=[4, 6]), 'not from 4 to 6'),
        (dict(groups=1000), 'groups=1000 is not from 1 to 5'),
        (dict(groups=8, candidates=[7, 8]), 'stem has 6 input channels'),
        (dict(others='both'), 'others'),
        (dict(solver='best'), 'solver'),
        (dict(images=0), 'images'),
        (dict(loss=dict(type='L2Loss')), 'loss'),
    ],
)
def test_bad_input(args, match):
    with pytest.raises(QuantConfigError, match=match):
        quantized(dict(ALLOCATE, **args))


def test_outputs_that_are_no_numbers(monkeypatch):
    module = sys.modules[AllocateGroups.__module__]
    rows = module.of_all_images

    def last(found):
        return [[*row[:-1], nan] for row in rows(found)]

    monkeypatch.setattr(module, 'of_all_images', last)
    session = quantized(ALLOCATE)
    assert 'AllocateGroups: stem cannot have 5 grids' in '\n'.join(
        session.notes
    )
    for record in session.records:
        assert record.perturbations[-1] is None
        assert record.groups < CANDIDATES[-1]

    def every(found):
        return [[nan] * len(row) for row in rows(found)]

    monkeypatch.setattr(module, 'of_all_images', every)
    with pytest.raises(NumericError, match='any number of grids of stem'):
        quantized(ALLOCATE)


def test_channels_are_the_most_groups():
    session = quantized(dict(ALLOCATE, groups=8, candidates=[2, 6, 7, 8]))
    found = {r.unit: r for r in session.records}
    assert found['stem'].candidates == [2, 6]
    assert found['backbone.0.second'].candidates == [2, 6, 7, 8]
    # so many as the budget would have in each, if there were channels
    assert sum(r.bops[r.candidates.index(r.groups)] for r in found.values())


def test_its_place():
    with pytest.raises(QuantConfigError, match='needs what'):
        passes = [ALLOCATE, *PASSES]
        cfg = dict(bits='w8a3', rules=RULES, passes=passes)
        quantize_detector(Scoring().eval(), batches(), cfg)
