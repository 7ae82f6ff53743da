# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Chosen widths in plan, quantizers and records."""

import pytest
from allocate_kit import of_kind
from two_levels import RULES, Tiny, batches

from mmdet_ptq import quantize_detector
from mmdet_ptq.quantizers import ChannelGroups
from mmdet_ptq.records import AllocationRecord, BudgetRecord

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def quantized(**args):
    model = Tiny().eval()
    passes = [
        dict(type='FoldBatchNorm'),
        dict(type='Observe'),
        dict(type='AllocateBits', **args),
        dict(type='SetRanges'),
    ]
    cfg = dict(bits='w4a4', rules=RULES, passes=passes)
    return model, quantize_detector(model, batches(), cfg)


def test_readers_go_on_sharing():
    model, session = quantized(mean_act_bits=6)
    shared = model.side.act_quantizers['input']
    assert model.bbox_head[0].act_quantizers['input'] is shared
    group = next(g for g in session.plan.groups if ('side', 'input') in g)
    assert ('bbox_head.0', 'input') in group
    for name, port in group:
        assert session.plan.layers[name].acts[port].bits == shared.bits
    records = of_kind(session, AllocationRecord)
    one = next(
        r for r in records if 'side' in r.layers and r.tensor != 'weight'
    )
    assert one.bits == shared.bits and one.elements == 8 * 64 + 8 * 16
    for record in records:
        layer = session.layers[record.unit]
        q = layer.weight_quantizer
        if record.tensor != 'weight':
            q = layer.act_quantizers[record.tensor]
        assert q.bits == record.bits
        least = 3 if record.tensor == 'weight' else 5
        assert record.widths == list(range(least, 9))
        assert len(record.curve) == len(record.widths)


def test_groups_in_plan_and_records():
    _, session = quantized(channels=4, floor=2)
    records = [
        r for r in of_kind(session, AllocationRecord) if r.group is not None
    ]
    assert records
    for unit, tensor in {(r.unit, r.tensor) for r in records}:
        widths = [
            r.bits for r in records if (r.unit, r.tensor) == (unit, tensor)
        ]
        layer = session.layers[unit]
        if tensor == 'weight':
            q, spec = layer.weight_quantizer, session.plan.layers[unit].weight
        else:
            q = layer.act_quantizers[tensor]
            spec = session.plan.layers[unit].acts[tensor]
        if len(set(widths)) == 1 and tensor == 'weight':
            assert q.bits == spec.bits == widths[0]
        else:
            assert isinstance(q, ChannelGroups)
            assert q.widths == widths == spec.args['widths']
            assert q.bits == spec.bits == max(widths)


def test_budgets_add_up():
    _, session = quantized(mean_weight_bits=3.5)
    weights, inputs = of_kind(session, BudgetRecord)
    for record, tensor in ((weights, True), (inputs, False)):
        some = [
            r
            for r in of_kind(session, AllocationRecord)
            if (r.tensor == 'weight') == tensor
        ]
        total = sum(r.elements for r in some)
        spent = sum(r.elements * r.bits for r in some) / total
        assert record.spent == pytest.approx(spent)
        assert record.spent <= record.budget
        bits = [r.bits for r in some]
        assert (record.least, record.most) == (min(bits), max(bits))
    assert (weights.budget, inputs.budget) == (3.5, 4)
    predicted = sum(
        r.curve[r.widths.index(r.bits)]
        for r in of_kind(session, AllocationRecord)
    )
    assert weights.predicted == pytest.approx(predicted)
