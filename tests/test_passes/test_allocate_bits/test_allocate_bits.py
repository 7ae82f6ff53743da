# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bits of a whole detector."""

import copy

import pytest
import torch
from allocate_kit import IMAGES, Attention, allocated, of_kind, passes, planned
from rank_kit import on_ranks
from reconstruct_model import RULES, Net, batches, error, outputs

from mmdet_ptq import load_quantized, quantize_detector
from mmdet_ptq.apis import save_quantized
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare, run_quantization
from mmdet_ptq.errors import BudgetError, PTQError, QuantConfigError
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.passes import AllocateBits
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.records import AllocationRecord, BudgetRecord

pytestmark = [
    pytest.mark.filterwarnings('ignore:no detector adapter'),
    pytest.mark.filterwarnings('ignore:only'),
]


@pytest.fixture(scope='module')
def plain():
    return allocated()


def test_it_is_nearer_than_one_width(plain):
    model, session = plain
    units = of_kind(session, AllocationRecord)
    chosen = sum(r.curve[r.widths.index(r.bits)] for r in units)
    flat = sum(r.curve[r.widths.index(4)] for r in units)
    assert chosen < flat
    record = of_kind(session, BudgetRecord)[0]
    assert record.predicted == pytest.approx(chosen)
    assert record.measured < record.uniform
    # additive as far as that goes
    assert record.measured == pytest.approx(chosen, rel=0.6)
    uniform = Net().eval()
    cfg = dict(bits='w4a4', rules=RULES, passes=passes()[::2])
    quantize_detector(uniform, batches(IMAGES), cfg)
    data = batches(8)[IMAGES:]
    assert error(model, data) < 0.8 * error(uniform, data)


def test_it_says_so_in_one_line(plain):
    _, session = plain
    (line,) = [n for n in session.notes if n.startswith('bits: ')]
    weights, inputs = of_kind(session, BudgetRecord)
    assert line.startswith(
        f'bits: weights {weights.spent:.4g} of 4 on average, from '
        f'{weights.least} to {weights.most}; inputs {inputs.spent:.4g} of 4'
    )
    assert f'{weights.uniform:.3g} with one width' in line
    assert 'bit allocation' in session.seconds


def test_the_artefact_reloads(tmp_path):
    model, session = allocated(
        channels=4, scope='@backbone', objective='feature'
    )
    assert any(r.group for r in of_kind(session, AllocationRecord))
    save_quantized(session, tmp_path / 'q.pth')
    fresh = load_quantized(Net().eval(), tmp_path / 'q.pth')
    data = batches(2)
    assert all(map(torch.equal, outputs(model, data), outputs(fresh, data)))


@pytest.mark.parametrize(
    'act', [dict(), dict(type='InstanceGroupQuantizer', num_groups=2)]
)
def test_an_attention(act, tmp_path):
    """Products, softmaxes, and an input that three layers read."""
    rules = [
        dict(match='*', weight=dict(granularity='channel'), act={}),
        dict(match='@matmul', act=dict(granularity='channel')),
        dict(
            match='@softmax',
            act=dict(
                type='AdaLogQuantizer', granularity='tensor', fixed_scale=1.0
            ),
        ),
        dict(match='qkv.*', act=act),
    ]
    model, session = allocated(net=Attention, rules=rules, floor=2)
    records = of_kind(session, AllocationRecord)
    tensors = {(r.unit, r.tensor): r for r in records}
    assert {('qk', 'a'), ('qk', 'b'), ('pv', 'a'), ('pv', 'b')} < set(tensors)
    tokens = tensors['qkv.0', 'input']
    assert tokens.layers == ['qkv.0', 'qkv.1', 'qkv.2']
    assert tokens.elements == 8 * 9
    assert len({r.bits for r in records}) > 1
    quantizers = [m.act_quantizers['input'] for m in model.qkv]
    assert quantizers[0] is quantizers[1] is quantizers[2]
    assert quantizers[0].bits == tokens.bits
    record = of_kind(session, BudgetRecord)[0]
    assert record.measured <= record.uniform
    save_quantized(session, tmp_path / 'q.pth')
    fresh = load_quantized(Attention().eval(), tmp_path / 'q.pth')
    data = batches(2)
    assert all(map(torch.equal, outputs(model, data), outputs(fresh, data)))


class Store:
    """Keeps progress as a file does; stops at some writes."""

    def __init__(self, stops):
        self.stops, self.count, self.saved = set(stops), 0, None

    def load(self):
        return copy.deepcopy(self.saved)

    def save(self, progress):
        self.saved = copy.deepcopy(progress)
        self.count += 1
        if self.count in self.stops:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on():
    data = batches(9)
    args = dict(channels=4, rounds=2, probes=1, scope=['neck.*', 'tower'])
    cfg = dict(bits='w4a4', rules=RULES, passes=passes(**args))

    def run(store, resume):
        model = Net().eval()
        feed = Batches(model, data)
        session = run_quantization(
            model,
            parse_quant_cfg(cfg),
            data[0],
            feed,
            store=store,
            resume=resume,
        )
        return named_tensors(model), session.records

    whole, records = run(Store([]), False)
    # behind Observe, and within each of what is measured
    stops = [1, 2, 3]
    store, resumed = Store(stops), None
    for _ in range(len(stops) + 1):
        try:
            resumed = run(store, store.count > 0)
        except KeyboardInterrupt:
            continue
    assert resumed is not None and store.count > 3
    assert list(whole) == list(resumed[0])
    assert all(torch.equal(whole[n], resumed[0][n]) for n in whole)
    assert records == resumed[1]


def of_rank(rank, count=2):
    model, data = Net().eval(), batches(5)
    cfg = dict(bits='w4a4', rules=RULES, passes=passes(images=4, channels=4))
    feed = Batches(model, data[rank::count])
    # all ranks survey the same image
    session = run_quantization(model, parse_quant_cfg(cfg), data[0], feed)
    found = {n: t.tolist() for n, t in named_tensors(model).items()}
    return found, [r.to_dict() for r in session.records]


def test_two_ranks_choose_what_one_does(tmp_path):
    alone = of_rank(0, 1)
    for found in on_ranks(of_rank, 2, tmp_path):
        assert found == alone


@pytest.mark.parametrize(
    'args, error, match',
    [
        (
            dict(mean_weight_bits=2.5, floor=3),
            BudgetError,
            'weights: .* 3 to 8',
        ),
        (
            dict(most=5, mean_act_bits=6),
            BudgetError,
            'inputs: a mean of 6 bits is above most=5',
        ),
        (dict(budget='bytes', amount=1), BudgetError, 'bytes is below'),
        (
            dict(budget='bops', amount=1),
            BudgetError,
            'layers: .* a lower floor',
        ),
        (dict(scope='@mask'), QuantConfigError, 'nothing to allocate'),
        (dict(scope='@bckbone'), PTQError, '@backbone'),
        (dict(objective='roi'), QuantConfigError, "objective='roi'"),
        (
            dict(objective='feature'),
            QuantConfigError,
            r"neck\.0\.weight, .*tower\.input: the objective 'feature'",
        ),
        (dict(objective='features'), QuantConfigError, "mean 'feature'"),
        (
            dict(solver_args=dict(strict=True)),
            QuantConfigError,
            r"passes\[\d\].*solver_args: solver 'dp': unknown option 'strict'",
        ),
        (dict(amount=3), QuantConfigError, 'mean_weight_bits'),
        (
            dict(
                budget='bops',
                solver='lagrange',
                solver_args=dict(compat=True),
            ),
            BudgetError,
            'BOPs has costs alone',
        ),
        (dict(budget='bops', channels=4), QuantConfigError, 'whole layers'),
        (dict(budget='bops', mean_act_bits=4), QuantConfigError, 'use amount'),
        (dict(budget='bytes', mean_weight_bits=4), QuantConfigError, 'amount'),
        (dict(floor=5, most=5), QuantConfigError, 'a floor of 2 to 4, or a '),
        (dict(most=9), QuantConfigError, 'most must be a number from 3 to 8'),
        (dict(mean_act_bits=9), QuantConfigError, 'mean_act_bits must be'),
    ],
)
def test_mistakes_are_found_before_a_forward(args, error, match):
    with pytest.raises(error, match=match):
        planned(**args)


def test_groups_of_a_weight_whose_rounding_is_learned():
    learn = dict(type='Reconstruct', learn=[dict(type='AdaRound')])

    def planned_with(channels):
        found = [*passes(channels=channels), learn]
        cfg = parse_quant_cfg(dict(bits='w4a4', rules=RULES, passes=found))
        model, data = Net().eval(), batches(1)
        prepare(model, cfg, data[0], Batches(model, data))

    planned_with(channels=None)
    with pytest.raises(QuantConfigError, match=r'AdaRound: .* ChannelGroups'):
        planned_with(channels=4)


def test_the_order_of_passes():
    cfg = dict(bits='w4a4', rules=RULES, passes=passes())
    late = dict(cfg, passes=[cfg['passes'][i] for i in (0, 2, 1)])
    with pytest.raises(QuantConfigError, match='AllocateBits comes after Set'):
        quantize_detector(Net().eval(), batches(1), late)
    first = dict(cfg, passes=[cfg['passes'][i] for i in (1, 0, 2)])
    with pytest.raises(QuantConfigError, match='needs what Observe gives'):
        quantize_detector(Net().eval(), batches(1), first)
    rules = [dict(match='*', weight=dict(bits=4), act=dict(bits=4))]
    with pytest.raises(QuantConfigError, match="has no 'bits'"):
        quantize_detector(
            Net().eval(), batches(1), dict(cfg, bits=None, rules=rules)
        )


@pytest.mark.parametrize('solver', ['lagrange', 'hull', 'milp'])
def test_other_solvers(solver):
    _, session = allocated(solver=solver, probes=1, images=2)
    records = of_kind(session, BudgetRecord)
    assert all(r.spent <= r.budget and r.solver == solver for r in records)


def test_a_mean_that_is_no_width():
    _, session = allocated(mean_weight_bits=3.5, mean_act_bits=4.5, probes=1)
    weights, inputs = of_kind(session, BudgetRecord)
    assert 3.3 < weights.spent <= 3.5 and 4.3 < inputs.spent <= 4.5
    assert weights.uniform is None
    # no fewer than one below the mean, rounded up
    assert weights.least == 3 and inputs.least >= 4


def test_options_hold_settings_and_no_state():
    one = AllocateBits(scope=['@backbone', 'neck.*'])
    assert one.scope == ('@backbone', 'neck.*')
