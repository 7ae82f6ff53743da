# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Parts by what they lose."""

import numpy as np
import pytest
from scipy import stats

from mmdet_ptq.passes.measure_sensitivity import (
    Part,
    ranked,
    spearman,
    spread_over,
)

A, B, C = (Part(n, (n,), (n,), (n,)) for n in 'abc')
SCORES = {
    'all': 10.0,
    'alone/weight/a': 1.0,
    'alone/act/a': 2.0,
    'without/weight/a': 8.0,
    'without/act/a': 11.0,
    'alone/act/b': 5.0,
    'without/act/b': 7.0,
    'alone/weight/c': 3.0,
}


def test_the_worst_come_first():
    found = ranked([A, B, C], SCORES)
    # a and c lose the same, and stay in their order
    assert [r.part.name for r in found] == ['b', 'a', 'c']
    b, a, c = found
    assert (a.score, a.spared) == (3.0, 2.0 - 1.0)
    assert (a.spared_weight, a.spared_act) == (2.0, -1.0)
    assert (b.weight, b.act, b.score, b.spared) == (None, 5.0, 5.0, 3.0)
    assert c.spared == 0 and c.spared_act is None


@pytest.mark.parametrize('seed', range(5))
def test_rank_correlation_as_scipy_has_it(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 12), rng.normal(size=12)
    wanted = stats.spearmanr(a, b).statistic
    assert spearman(a, b) == pytest.approx(wanted, abs=1e-12)
    assert spearman(b, b**3) == pytest.approx(1)
    assert spearman(b, -b) == pytest.approx(-1)


def test_no_rank_where_all_are_equal():
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_at_even_distances():
    assert spread_over(range(9), 3) == [0, 4, 8]
    assert spread_over('abc', 5) == ['a', 'b', 'c']
    assert spread_over('abc', 1) == ['a']
