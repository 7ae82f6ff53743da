# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a rank finds goes to the others."""

import copy
from types import SimpleNamespace

import torch
from search_kit import quantized

from mmdet_ptq.passes.search_scales.component import Component
from mmdet_ptq.passes.search_scales.share import packed, take
from mmdet_ptq.records import SearchRecord


def test_packed_and_taken():
    layer, _ = quantized('linear')
    ours = SimpleNamespace(layers={'fc': layer}, records=[], notes=[])
    theirs = copy.deepcopy(ours)
    part = Component(('fc',), (('fc', 'weight'),), ((('fc', 'input'),),))
    q = layer.act_quantizers['input']
    q.set_range(*(end * 2 for end in q.range()))
    layer.weight_quantizer.rescale(torch.full((6,), 3.0))
    record = SearchRecord('fc', 'input', ['fc'], 2.0, 1.0)
    found = packed(ours, part, [record], ['a note'])
    take(theirs, part, found)
    other = theirs.layers['fc']
    assert torch.equal(other.act_quantizers['input'].scale, q.scale)
    scale = layer.weight_quantizer.scale
    assert torch.equal(other.weight_quantizer.scale, scale)
    assert theirs.records == [record] and theirs.notes == ['a note']
