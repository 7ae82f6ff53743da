# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables that few numbers give."""

import pytest
import torch

from mmdet_ptq.errors import CalibrationError
from mmdet_ptq.quantizers import AdaLogQuantizer, LogQuantizer
from mmdet_ptq.quantizers.stored_table import grid_of

ONE = torch.ones(1)


def test_bounds_are_halfway_unless_given():
    values = torch.tensor([0.0, 1.0, 4.0]).double()
    assert grid_of(values).bounds.tolist() == [0.5, 2.5]
    given = torch.tensor([0.9, 1.1]).double()
    torch.testing.assert_close(
        grid_of(values, given, 1.0).bounds, (given - 1).float()
    )
    assert grid_of(values, given, 1.0).table.tolist() == [-1, 0, 3]


def test_a_value_stays_the_code_of_itself():
    """Also where its bound is rounded onto it, or below it."""
    values = torch.tensor([0.0, 1.0, 1.0 + 2.0**-23]).double()
    grid = grid_of(values)
    assert grid.bounds[1] == grid.table[2]
    below = grid_of(values, torch.tensor([-0.5, 7.0]).double())
    assert 0 < below.bounds[0] <= below.table[1]
    assert below.bounds[1] == below.table[2]


def test_what_is_no_normal_number_is_zero():
    values = torch.tensor([0.0, 1e-40, 1e-39, 1.0]).double()
    assert grid_of(values).table.tolist() == [0, 0, 0, 1]


def test_the_table_is_state_not_computed_anew():
    q = LogQuantizer(3)
    q.set_range(0 * ONE, ONE)
    state = q.state_dict()
    assert set(state) == {'initialized', 'scale', 'table', 'bounds_of_rows'}
    state['table'] = state['table'] * 0.5
    other = LogQuantizer(3)
    other.load_state_dict(state)
    assert other(ONE).item() == 0.5


def test_gradient_is_one_between_the_outermost_values():
    q = LogQuantizer(2, shift=0.5)
    q.set_range(0 * ONE, ONE)
    x = torch.tensor([-0.6, -0.5, -0.4, 0.0, 1.0, 1.1], requires_grad=True)
    (q(x) * torch.arange(1.0, 7.0)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]


def test_one_level_is_set_alone():
    q = AdaLogQuantizer(2, per_level=True, granularity='channel', axis=0)
    q.set_range(torch.zeros(2, 3), torch.ones(2, 3))
    q.set_level(1, torch.tensor([1.0, 2.0, 4.0]), torch.full((3,), 37.0))
    assert q.scale.tolist() == [[1, 1, 1], [1, 2, 4]]
    assert q.q.tolist() == [[43] * 3, [37] * 3]
    assert q(torch.full((3, 1), 9.0), 1).flatten().tolist() == [1, 2, 4]
    assert q(torch.full((3, 1), 9.0), 0).flatten().tolist() == [1, 1, 1]
    # as set at once
    other = AdaLogQuantizer(2, per_level=True, granularity='channel', axis=0)
    other.set_numbers(q.scale, q.q)
    assert torch.equal(other.table, q.table)
    assert torch.equal(other.bounds_of_rows, q.bounds_of_rows)


def test_without_a_range():
    for ask in ('numbers', 'codebook', 'encoding'):
        with pytest.raises(CalibrationError, match='calibrate first'):
            getattr(LogQuantizer(4), ask)()


def test_settings_tell_forms_apart():
    q = LogQuantizer(4)
    q.set_range(0 * ONE, ONE)
    with pytest.raises(RuntimeError, match='the same recipe'):
        LogQuantizer(4, base='sqrt2').load_state_dict(q.state_dict())
