# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which layers are searched together."""

import torch

from mmdet_ptq.passes.search_scales.component import components, joined


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


def test_samples_of_levels():
    one, two = torch.tensor([[1.0, 2, 3]]), torch.tensor([[4.0, 5]])
    assert joined({0: one, 1: two}, 1).tolist() == [[1, 2, 3, 4, 5]]
    assert joined({0: one, 1: two}, 2).tolist() == [[1, 2, 3], [4, 5, 4]]
