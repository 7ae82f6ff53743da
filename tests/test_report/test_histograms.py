# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where values lie on their grid."""

import pytest
import torch

from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.report.histograms import BINS, REACH, GridHistogram, grid_of


def quantizer(bits=2, low=-1.0, high=1.0, **given):
    found = UniformQuantizer(bits, **given)
    rows = 1 if given.get('granularity', 'tensor') == 'tensor' else 2
    found.set_range(torch.full((rows,), low), torch.full((rows,), high))
    return found.eval()


def test_one_grid_in_units_of_the_tensor():
    # four values: 0, 1, 2, 3
    q = quantizer(low=0.0, high=3.0)
    found = GridHistogram()
    found.add(torch.tensor([0.0, 3.0, 1.5, 99.0]), q)
    told = found.to_dict()
    assert (told['codes'], told['rows'], told['ends']) == (4, 1, [0, 3])
    assert told['grid'] == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-4)
    assert sum(told['counts']) == 4 and told['clipped'] == 0.25
    width = 2 * REACH / BINS
    for place in (-1.0, 0.0, 1.0):
        at = int((place + REACH) / width + 1e-6)
        assert sum(told['counts'][at - 1 : at + 1]) == 1
    # what is far away is in the last bin
    assert told['counts'][-1] == 1


def test_each_channel_is_stretched():
    q = UniformQuantizer(4, True, 'channel', role='weight')
    q.set_range(torch.tensor([-1.0, -100.0]), torch.tensor([1.0, 100.0]))
    x = torch.linspace(-0.9, 0.9, 50)
    one, other = GridHistogram(), GridHistogram()
    one.add(torch.stack([x, 100 * x]), q)
    other.add(torch.stack([x, 0 * x]), q)
    told = one.to_dict()
    assert told['rows'] == 2 and told['ends'] is None
    half = [c // 2 for c in told['counts']]
    assert sum(half) == pytest.approx(50, abs=1)
    assert told['counts'] != other.to_dict()['counts']


def test_several_tensors_add_up():
    q, found = quantizer(8), GridHistogram()
    for _ in range(3):
        found.add(torch.zeros(10), q)
    told = found.to_dict()
    assert sum(told['counts']) == 30 and told['grid'] is None


def test_levels_have_grids_of_their_own():
    q = UniformQuantizer(3, per_level=True)
    top = torch.tensor([[1.0], [8.0]])
    q.set_range(-top, top)
    found = GridHistogram()
    found.add(torch.ones(4), q, 0)
    found.add(8 * torch.ones(4), q, 1)
    told = found.to_dict()
    assert told['ends'] is None and max(told['counts']) == 8


def test_no_data():
    found = GridHistogram()
    found.add(torch.zeros(0, 3), quantizer())
    assert found.to_dict() is None


def test_the_grid_is_what_the_quantizer_gives():
    q = quantizer(3, -2.0, 1.0)
    grid = grid_of(q.encoding(), torch.tensor([0]))
    x = torch.linspace(-3, 3, 500)
    assert torch.equal(grid[0], q(x).unique())
