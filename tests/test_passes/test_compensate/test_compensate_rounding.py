# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding of a whole model."""

import pytest
import torch
from mmcv import ops
from reconstruct_model import (
    INIT,
    LEARN,
    RULES,
    UNITS,
    Net,
    batches,
    equal,
    error,
    outputs,
    stopped_and_resumed,
)
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import ActivationCache
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.layers import quantizing
from mmdet_ptq.passes.compensate import compensate_rounding as module
from mmdet_ptq.records import RoundingRecord
from mmdet_ptq.registry import PASSES

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
KIND = 'CompensateRounding'


def quantize(net=Net, data=None, rules=RULES, passes=INIT, **args):
    model = net().eval()
    given = [*passes, dict(type=KIND, **args)] if args is not None else passes
    session = quantize_detector(
        model, data or batches(), dict(bits='w3a8', rules=rules, passes=given)
    )
    return model, session


def plain():
    model = Net().eval()
    cfg = dict(bits='w3a8', rules=RULES, passes=INIT)
    quantize_detector(model, batches(), cfg)
    return error(model, batches())


@pytest.mark.parametrize('unit', ['block', 'layer'])
@pytest.mark.parametrize('towards_float', [False, True])
def test_outputs_are_nearer_than_with_the_nearest_values(unit, towards_float):
    model, session = quantize(unit=unit, towards_float=towards_float, rows=100)
    assert error(model, batches()) < 0.6 * plain()
    layers = [n for n in session.layers if n != 'out']
    assert [r.unit for r in session.records] == layers
    for record in session.records:
        assert isinstance(record, RoundingRecord)
        assert 0 <= record.after < record.before < 1
        assert record.rows > 0
    # of some, images confirm that it helps
    shares = [record.share for record in session.records]
    assert any(shares) == towards_float
    assert session.seconds['compensated rounding'] > 0


def test_units_see_the_rounding_of_those_before(monkeypatch):
    seen = []

    def noted(layers, weights, acts):
        seen.append((set(weights), set(acts)))
        return quantizing(layers, weights, acts)

    monkeypatch.setattr(module, 'quantizing', noted)
    _, session = quantize(data=batches(1))
    units = [set(unit.layers) for unit in session.graph.units]
    before = set()
    for unit, (weights, acts) in zip(units, seen, strict=False):
        assert weights == before and acts == before | unit
        before |= unit
    assert len(seen) == len(units) - 1  # without the one that stays float


def test_rows_are_bounded():
    _, session = quantize(rows=7)
    # 16 images, and two levels in the tower
    rows = {r.unit: r.rows for r in session.records}
    assert rows['backbone.0'] == 7 * 16 and rows['tower'] == 7 * 32


def test_more_columns_than_fit_are_parted():
    model, session = quantize(columns=40, rows=100)
    noted = [n for n in session.notes if 'blocks of columns' in n]
    # 72 columns of 3 x 3 x 8, in two halves
    assert len(noted) == 5 and noted[0].startswith('backbone.2.conv1: ')
    assert all('2 blocks' in note for note in noted)
    assert error(model, batches()) < plain()


@pytest.mark.parametrize('kind', ['UniformQuantizer', 'CodebookQuantizer'])
def test_steps_that_cannot_be_fitted_are_said(kind):
    weight = dict(type=kind, granularity='group', group_size=9)
    rules = [dict(RULES[0], weight=weight), *RULES[1:]]
    rules.insert(1, dict(match='neck.*', skip=True))
    _, session = quantize(rules=rules, refits=1)
    (said,) = [n for n in session.notes if 'stay as they are' in n]
    assert 'steps of 6 weights' in said and 'several groups' in said
    assert said.endswith(', '.join(r.unit for r in session.records))
    _, session = quantize(rules=rules)
    assert not any('stay as they are' in note for note in session.notes)


class Unreached(Net):
    """A layer that predictions do not call."""

    def __init__(self):
        super().__init__()
        self.side = nn.Conv2d(8, 8, 1)
        self.calls = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.calls += 1
        found = super().forward(inputs, data_samples, mode)
        if self.calls <= 2:  # the survey's
            self.side(self.backbone(torch.stack(list(inputs)).float()))
        return found


def test_a_layer_without_data_keeps_the_nearest_values():
    model, session = quantize(Unreached)
    said = [n for n in session.notes if n.startswith('side: ')]
    assert any('no calibration image reached it' in n for n in said), said
    assert 'side' not in [r.unit for r in session.records]
    weight = Unreached().side.weight
    expected = session.layers['side'].weight_quantizer(weight)
    assert torch.equal(model.side.weight, expected)


@pytest.mark.parametrize(
    'kind', [ops.DeformConv2dPack, ops.ModulatedDeformConv2dPack]
)
def test_deformable_convolutions(kind):
    class Deformable(Net):
        def __init__(self):
            super().__init__()
            self.tower = kind(8, 8, 3, padding=1)
            self.tower.conv_offset.weight.data.normal_(0, 0.05)

    data, errors = batches(), []
    exact = outputs(Deformable().eval(), data)
    for passes in (INIT, [*INIT, dict(type=KIND, rows=100)]):
        model = Deformable().eval()
        cfg = dict(bits='w3a8', rules=RULES, passes=passes)
        session = quantize_detector(model, data, cfg)
        pairs = zip(exact, outputs(model, data), strict=True)
        errors.append(sum(float((a - b).square().sum()) for a, b in pairs))
    rounded = {r.unit: r for r in session.records}
    assert rounded['tower'].after < 0.8 * rounded['tower'].before
    assert 'tower.conv_offset' in rounded
    assert errors[1] < errors[0]


def test_weights_that_are_shared_keep_the_nearest_values():
    class Sharing(Net):
        def __init__(self):
            super().__init__()
            self.neck[1].weight = self.neck[0].weight

    model, session = quantize(Sharing)
    rounded = [r.unit for r in session.records]
    assert 'tower' in rounded and 'neck.0' not in rounded
    assert model.neck[0].weight is model.neck[1].weight


def test_dead_channels_are_said():
    class Dead(Net):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.backbone[0].weight.zero_()
                self.backbone[0].bias.fill_(-1.0)

    model, session = quantize(Dead, damping=0.0)
    said = [n for n in session.notes if 'its inputs say nothing' in n]
    assert [n.split(':')[0] for n in said] == ['backbone.2.conv1']
    dead = {r.unit: r.dead for r in session.records}
    assert dead['backbone.0'] == 0 and dead['backbone.2.conv1'] == 72
    assert {r.damping for r in session.records} == {0.0}
    assert all(r.after <= r.before for r in session.records)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_what_is_not_finite_stops_with_the_layer():
    class Breaking(Net):
        """Breaks as soon as its first layer is rounded."""

        def forward(self, inputs, data_samples=None, mode='tensor'):
            if getattr(self.backbone[0], 'rounded', None) is not None:
                inputs = [x * torch.nan for x in inputs]
            return super().forward(inputs, data_samples, mode)

    with pytest.raises(NumericError, match=r'^backbone.2.conv1: .*NaN or Inf'):
        quantize(Breaking, data=batches(2))


def test_rows_that_have_no_like_are_their_own_aim():
    class Narrowing(Net):
        """Sees less as soon as its first layer is rounded."""

        def forward(self, inputs, data_samples=None, mode='tensor'):
            if getattr(self.backbone[0], 'rounded', None) is not None:
                inputs = [x[..., :8] for x in inputs]
            return super().forward(inputs, data_samples, mode)

    _, session = quantize(Narrowing, rows=10**4)
    shares = {r.unit: r.share for r in session.records}
    assert shares.pop('backbone.0') > 0 and not any(shares.values())
    assert all(r.after < r.before for r in session.records)


class Convolutions(TorchFunctionMode):
    """Counts them."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is nn.functional.conv2d
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    'unit, inside', [('block', (1, 3, 4, 3)), ('layer', (1, 2, 2, 2, 2, 2))]
)
def test_what_comes_before_a_unit_is_kept(unit, inside):
    """In memory, or on disk where there is no room."""
    found = []
    for cache, given in (
        ('1GiB', []),
        ('16KiB', [dict(type=KIND, rows=30, unit=unit)]),
        ('1GiB', [dict(type=KIND, rows=30, unit=unit)]),
    ):
        model = Net().eval()
        cfg = dict(
            bits='w3a4',
            rules=RULES,
            passes=[*INIT, *given],
            calibration=dict(cache=cache),
        )
        with Convolutions() as calls:
            session = quantize_detector(model, batches(), cfg)
        found.append((model, session.records, calls.count))
    (_, _, before), (one, records, slow), (other, same, fast) = found
    assert equal(one, other) and records == same
    # one float forward of eleven calls, then each unit and what was rounded
    # last: the backbone in turn, the necks, the head on two levels
    an_image = 11 + sum(inside) + 2 + 5
    assert slow - before == fast - before == 16 * an_image


def test_of_the_float_detector_outputs_are_kept(monkeypatch):
    kept, keep = [], ActivationCache.keep

    def counted(cache, tree, exact=False):
        kept.extend(t.numel() for t in tree_leaves(tree))
        return keep(cache, tree, exact)

    quantize(data=batches(2), towards_float=False)
    monkeypatch.setattr(ActivationCache, 'keep', counted)
    quantize(data=batches(2), rows=30, towards_float=False)
    images = sum(kept)
    kept.clear()
    quantize(data=batches(2), rows=30)
    # of two images and 8 channels: seven calls, and two of the tower
    assert sum(kept) - images == 2 * 8 * 30 * (5 + 2 + 2)


@pytest.mark.parametrize('stop_at', range(2, 2 + len(UNITS)))
def test_resume_after_any_unit(stop_at):
    args = dict(kind=KIND, rows=30)
    whole, expected, _ = stopped_and_resumed(None, **args)
    model, session, _ = stopped_and_resumed(stop_at, **args)
    assert equal(model, whole)
    assert session.records == expected.records
    assert session.notes == expected.notes


def test_the_seed_decides_and_nothing_else():
    one, again = quantize(rows=9)[0], quantize(rows=9)[0]
    assert equal(one, again)
    other = Net().eval()
    passes = [*INIT, dict(type=KIND, rows=9)]
    cfg = dict(bits='w3a8', rules=RULES, passes=passes)
    quantize_detector(other, batches(), dict(cfg, calibration=dict(seed=3)))
    assert not equal(one, other)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (dict(unit='stage'), "unknown unit 'stage'"),
        (dict(rows=0), 'rows must be'),
        (dict(damping=-1), 'damping must be'),
        (dict(rounds=1.5), 'rounds must be'),
        (dict(columns=0), 'columns must be'),
        (dict(towards_float='no'), 'towards_float'),
    ],
    ids=str,
)
def test_wrong_arguments(args, message):
    with pytest.raises(QuantConfigError, match=message):
        quantize(**args)


@pytest.mark.parametrize(
    ('passes', 'message'),
    [
        (INIT[:2], f'{KIND} needs what SetRanges gives'),
        ([*INIT, dict(type=KIND)], f'{KIND} is there twice; leave one out'),
        (
            [*INIT, dict(type='Reconstruct', learn=LEARN, iters=1)],
            f'{KIND} comes after Reconstruct and would undo its work',
        ),
    ],
    ids=['no ranges', 'twice', 'learned'],
)
def test_orders_that_make_no_sense(passes, message):
    with pytest.raises(QuantConfigError, match=message):
        quantize(passes=passes)


def test_registered():
    assert PASSES.get(KIND).__name__ == KIND
