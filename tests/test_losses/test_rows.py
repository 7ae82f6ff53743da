# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Choice and comparison of rows, by hand."""

import math

import pytest
import torch
from head_rows import head
from torch.nn import functional

from mmdet_ptq.losses.rows import (
    at_least_one,
    check_limit,
    confidence,
    divergence,
    is_mask,
    kept,
    raw_l2,
    raw_targets,
    surest_rows,
    zeroed,
)

LOGITS = torch.log(torch.tensor([[1.0, 2.0, 5.0], [4.0, 3.0, 1.0]]))


def test_confidence_leaves_the_background_out():
    scores, labels = confidence(head(LOGITS, activation='softmax'))
    assert scores.tolist() == pytest.approx([2 / 8, 4 / 8])
    assert labels.tolist() == [1, 0]
    # of the classes that are left, in order
    found = confidence(head(LOGITS, activation='softmax', background=0))
    assert found[0].tolist() == pytest.approx([5 / 8, 3 / 8])
    assert found[1].tolist() == [1, 0]
    scores, labels = confidence(head(LOGITS))
    assert scores.tolist() == pytest.approx([5 / 6, 4 / 5])
    assert labels.tolist() == [2, 0]


def test_surest_rows():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.7])
    assert surest_rows(scores, None, None).tolist() == [0, 1, 2, 3, 4]
    # of equal ones the first
    assert surest_rows(scores, None, 1).tolist() == [1]
    assert surest_rows(scores, None, 3).tolist() == [1, 3, 4]
    same = surest_rows(torch.ones(1000), None, 300)
    assert torch.equal(same, torch.arange(300))
    levels = torch.tensor([0, 0, 1, 1, 3])
    assert surest_rows(scores, levels, 1).tolist() == [1, 3, 4]
    none = torch.zeros(0)
    assert surest_rows(none, none.long(), 2).tolist() == []


def test_divergence():
    """That of Kullback and Leibler; the slope is the cross-entropy's."""
    target = LOGITS.flip(0)
    p, q = ([1 / 8, 2 / 8, 5 / 8], [4 / 8, 3 / 8, 1 / 8])
    expected = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
    logits = LOGITS.clone().requires_grad_()
    found = divergence(logits, target, 'softmax')
    assert float(found[0]) == pytest.approx(expected)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    cross = functional.cross_entropy(
        logits, target.softmax(1), reduction='sum'
    )
    torch.testing.assert_close(slope, torch.autograd.grad(cross, logits)[0])
    for kind in ('sigmoid', 'softmax'):
        assert not divergence(target, target, kind).any()
    # one Bernoulli distribution: 3 against 1 to 1
    found = divergence(
        torch.zeros(1, 1), torch.log(torch.tensor([[3.0]])), 'sigmoid'
    )
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(found) == pytest.approx(expected)


def test_raw_tensors():
    outputs = [torch.ones(2, 3), torch.zeros(2)]
    targets = raw_targets([torch.zeros(2, 3), torch.full((2,), 2.0)])
    assert float(raw_l2(outputs, targets)) == pytest.approx((6 + 8) / 8)
    assert float(raw_l2([], [])) == 0
    with pytest.raises(ValueError, match=r'\(2, 3\).*\(3, 2\)'):
        raw_l2([outputs[0].T, outputs[1]], targets)


def test_masks_are_told_by_their_head():
    assert is_mask(head([[0.0]], name='roi_head.mask_head'))
    assert not is_mask(head([[0.0]]))


def test_limit():
    assert check_limit(None) is None and check_limit(5) == 5
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match='topk_per_level'):
            check_limit(wrong)


def test_rows_that_count():
    """Taken out, or zeros, of which no shape depends on the numbers."""
    values = torch.tensor([[1.0, -2], [3, math.inf], [5, 6]])
    keep = torch.tensor([True, False, True])
    assert kept(values, keep).tolist() == [[1, -2], [5, 6]]
    assert zeroed(values, keep).tolist() == [[1, -2], [0, 0], [5, 6]]
    assert zeroed(values[:, 0], keep).tolist() == [1, 0, 5]
    values.requires_grad_()
    zeroed(values, keep).pow(1).sum().backward()
    assert values.grad.tolist() == [[1, 1], [0, 0], [1, 1]]
    # on a device that has no numbers they cannot be asked for
    assert kept(values.to('meta'), keep.to('meta')).shape == (3, 2)


def test_a_number_to_divide_by():
    assert at_least_one(0) == 1 and at_least_one(3) == 3
    assert at_least_one(torch.tensor(0)) == 1
    assert at_least_one(torch.tensor(3)) == 3
