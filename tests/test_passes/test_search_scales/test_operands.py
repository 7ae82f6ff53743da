# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rows of layers, as quantizers see them."""

import pytest
import torch
from compensate_kit import LAYERS, data, twin

from mmdet_ptq.calibration import sample_rows
from mmdet_ptq.losses import FisherLoss
from mmdet_ptq.passes.search_scales.operands import (
    Sampled,
    as_input,
    as_rows,
    blocks_of,
    merged,
    row_ids,
    weighed,
)
from mmdet_ptq.quantizers import Granularity


@pytest.mark.parametrize('kind', LAYERS)
def test_rows_and_inputs(kind):
    """A channel of the input holds what that channel gave to the rows."""
    layer = twin(kind)
    x = data(layer, images=1)[0][0]
    channels = x.shape[layer.act_axis]
    shape = [1] * x.dim()
    shape[layer.act_axis] = channels
    marked = torch.ones_like(x) * torch.arange(1.0, channels + 1).view(shape)
    rows = sample_rows(layer, marked, 50, torch.Generator())
    shown = as_input(layer, rows)
    assert torch.equal(as_rows(layer, shown), rows)
    assert shown.shape[1] == channels
    for c in range(channels):
        # and zeros of the border
        assert set(shown[:, c].unique().tolist()) <= {0.0, c + 1.0}


def test_blocks_of_rows():
    like = torch.zeros(1)
    # one for all
    ids = row_ids(Granularity('tensor'), torch.Size([2, 3, 4]), like)
    assert blocks_of(ids).tolist() == [[0], [0]]
    # two channels a row, in the last place
    grain = Granularity('group', -1, 2)
    ids = row_ids(grain, torch.Size([2, 3, 4]), like)
    assert blocks_of(ids).tolist() == [[0, 1], [0, 1]]
    # blocks with rows of their own
    ids = row_ids(Granularity('channel', 0), torch.Size([2, 3, 4]), like)
    assert blocks_of(ids).tolist() == [[0], [1]]
    # rows across the columns
    ids = row_ids(Granularity('channel', 1), torch.Size([2, 3, 4]), like)
    assert blocks_of(ids) is None
    assert blocks_of(torch.tensor([[[0, 0, 1]]])) is None


def test_merged():
    one, two = (
        Sampled(
            1,
            torch.full((n,), n),
            (torch.full((2, n, 3), float(n)),),
            torch.zeros(2, n, 1),
        )
        for n in (1, 2)
    )
    found = merged([one, two], product=False)
    assert found.level == 1 and found.image.tolist() == [1, 2, 2]
    assert found.inputs[0][0, :, 0].tolist() == [1, 2, 2]
    assert found.slopes.shape == (2, 3, 1)
    parts = [
        Sampled(0, torch.zeros(1), (torch.ones(1, 2, 3), torch.ones(1, 3, 5)))
        for _ in range(3)
    ]
    found = merged(parts, product=True)
    assert [t.shape[0] for t in found.inputs] == [3, 3]
    assert found.slopes is None


def test_gradients_become_weights():
    """Squares of errors times g^2 over its mean, over all levels."""
    one, two = (
        Sampled(0, torch.zeros(1), (torch.ones(1, 1, 2),), torch.tensor(g))
        for g in ([[[1.0, 2.0]]], [[[3.0, 0.0]]])
    )
    found = weighed([one, two], FisherLoss())
    squares = [part.slopes.square().tolist() for part in found]
    mean = (1 + 4 + 9) / 4
    for part, wanted in zip(squares, ([1, 4], [9, 0]), strict=True):
        assert part[0][0] == pytest.approx([w / mean for w in wanted])
    plain = Sampled(0, torch.zeros(1), (torch.ones(1, 1, 2),))
    assert weighed([plain], FisherLoss()) == [plain]
