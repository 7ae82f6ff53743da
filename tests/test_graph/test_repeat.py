# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What of a forward is kept to run it again."""

import torch

from mmdet_ptq.graph.repeat import repeat_of


def kept(function, *args):
    return repeat_of(function.__name__, function, args, {})


def test_pasted_masks_are_not_kept():
    """A large image of bools, once for each mask that is put into it."""
    image = torch.zeros(4, 8, 8, dtype=torch.bool)
    inside = torch.ones(8, 8, dtype=torch.bool)
    assert kept(torch.Tensor.__setitem__, image, (0,), inside) is None


def test_moved_floats_are_kept_with_their_indices():
    x, index = torch.rand(4, 3), torch.tensor([2, 0])
    found = kept(torch.Tensor.__getitem__, x, index)
    index.zero_()
    assert torch.equal(found([x]), x[[2, 0]])
