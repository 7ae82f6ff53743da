# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which layers are searched together."""

from types import SimpleNamespace

import torch

from mmdet_ptq.passes.search_scales.component import (
    ComponentSearch,
    components,
    joined,
)
from mmdet_ptq.quantizers import UniformQuantizer


def test_layers_that_share_quantizers():
    groups = [
        [('q', 'input'), ('k', 'input')],
        [('v', 'input')],
        [('k2', 'input'), ('k', 'input')],
        [('qk', 'a')],
        [('qk', 'b')],
    ]
    names = ['q', 'k', 'v', 'qk', 'k2', 'float']
    found = components(names, groups, ['v', 'k', 'k2'])
    assert [one.layers for one in found] == [
        ('q', 'k', 'k2'),
        ('v',),
        ('qk',),
    ]
    first, second, product = found
    assert first.weights == (('k', 'weight'), ('k2', 'weight'))
    assert first.groups == (tuple(groups[0]), tuple(groups[2]))
    assert second.weights == (('v', 'weight'),)
    assert product.weights == () and len(product.groups) == 2


def test_the_layer_that_lacks_samples_is_named():
    quantizer = UniformQuantizer(4)
    layer = SimpleNamespace(act_quantizers=dict(input=quantizer))
    search = ComponentSearch(dict(a=layer, b=layer), None, {}, None, None)
    for name, count in dict(a=40, b=12).items():
        data = [SimpleNamespace(positions=count, level=0)]
        search.terms[name] = SimpleNamespace(data=data, of=lambda t: t)
    assert search._without([('a', 'input'), ('b', 'input')])
    (note,) = search.notes
    assert note.startswith('b: 12 sampled positions are too few')
    assert not search._without([('a', 'input')])


def test_samples_of_levels():
    one, two = torch.tensor([[1.0, 2, 3]]), torch.tensor([[4.0, 5]])
    assert joined({0: one, 1: two}, 1).tolist() == [[1, 2, 3, 4, 5]]
    assert joined({0: one, 1: two}, 2).tolist() == [[1, 2, 3], [4, 5, 4]]
