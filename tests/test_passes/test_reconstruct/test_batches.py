# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images of each step."""

import pytest

from mmdet_ptq.passes.reconstruct.batches import draw

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def test_batches_do_not_depend_on_the_ranks():
    numbers = [j for j in range(16) if j % 8 != 7]
    found = draw(numbers, 4, seed=0)
    drawn = [next(found) for _ in range(40)]
    again = draw(numbers, 4, seed=0)
    assert drawn == [next(again) for _ in range(40)]
    for batch in drawn:
        assert len(set(batch)) == 4
        # two ranks own two each
        assert sum(j % 2 for j in batch) == 2
    # every image of a slot is used before one is used again
    first = [batch[0] for batch in drawn[:4]]
    assert sorted(first) == [0, 4, 8, 12]
    assert sorted(next(draw([3, 5], 8, seed=0))) == [3, 5]
