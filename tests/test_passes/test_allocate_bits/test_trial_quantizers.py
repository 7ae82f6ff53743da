# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers of all widths, from statistics that are there."""

import torch
from allocate_kit import observed

from mmdet_ptq.passes import SetRanges
from mmdet_ptq.passes.allocate_bits.operands import Operand, Wanted
from mmdet_ptq.passes.allocate_bits.trial_quantizers import (
    TrialQuantizers,
    make_trial_quantizers,
)
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.structures import QuantSpec

BASE = dict(weight=4, input=4)


def test_ranges_are_those_that_a_recipe_sets():
    session, _ = observed()
    wanted = Wanted(('*',), BASE, dict(weight=3, input=3), 8, None)
    trials = make_trial_quantizers(session, wanted.find(session))
    SetRanges().run(session)
    for trial in trials:
        name, tensor = trial.operand.holders[0]
        layer = session.layers[name]
        there = layer.weight_quantizer
        if tensor != 'weight':
            there = layer.act_quantizers[tensor]
        ours = trial.quantizers[4].state_dict()
        for key, value in there.state_dict().items():
            assert torch.equal(ours[key], value), (name, tensor, key)
        assert trial.quantizers[3].bits == 3
        assert trial.quantizers[8].initialized


def test_units_at_widths_of_their_own():
    quantizers = {}
    for bits in (2, 5):
        q = UniformQuantizer(bits, granularity='channel', axis=0)
        q.set_range(torch.full((5,), -1.0), torch.full((5,), 1.0))
        quantizers[bits] = q
    spec = QuantSpec('UniformQuantizer', 4)
    one = Operand('weight', (('a', 'weight'),), spec, (2, 5), (6, 6, 3), 2)
    trial = TrialQuantizers(one, quantizers, 0)
    x = torch.linspace(-1, 1, 15).view(5, 3)
    found = trial.at(x, [5, None, 2])
    assert torch.equal(found[:2], quantizers[5](x)[:2])
    assert torch.equal(found[2:4], x[2:4])
    assert torch.equal(found[4:], quantizers[2](x)[4:])
    assert trial.at(x, [None] * 3) is x
    sums = trial.sums(torch.arange(15.0).view(5, 3))
    assert sums.tolist() == [15, 51, 39]
