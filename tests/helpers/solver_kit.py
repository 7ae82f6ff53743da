"""Knapsacks small enough to be tried out."""

import itertools

import numpy as np
from hypothesis import strategies as st

from mmdet_ptq.solvers import Problem, Resource


@st.composite
def problems(draw, whole=True, resources=1, straight=False):
    """Up to five units of up to four options, and budgets that can be met.

    Curves may rise, options may be missing, and costs may be in any order;
    or distortions fall along a line, but for rounding.
    """
    units, options = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    distortions = rng.lognormal(
        0, draw(st.sampled_from([0, 1, 4])), (units, options)
    )
    if draw(st.booleans()):
        distortions = np.round(distortions)  # ties
    gone = rng.random((units, options)) < 0.2
    gone[:, 0] = False
    distortions[gone] = np.inf
    found = []
    choice = np.array(
        [draw(st.integers(0, options - 1)) for _ in range(units)]
    )
    choice[gone[np.arange(units), choice]] = 0
    for r in range(resources):
        costs = rng.integers(0, 12, (units, options)) * 6.0
        if not whole:
            costs = costs * rng.random((units, options))
        met = costs[np.arange(units), choice].sum()
        extra = draw(st.sampled_from([0.0, 1.0, 40.0]))
        found.append(Resource(f'r{r}', costs, met + extra))
    if straight:
        slope = np.round(rng.lognormal(0, 0.1, (units, 1)), 2)
        fall = 50 - slope * found[0].costs
        distortions = np.where(gone, np.inf, fall)
    return Problem(distortions, tuple(found))


def brute_force(problem):
    """The least distortion of all choices within all budgets."""
    units, options = problem.distortions.shape
    every = np.array(list(itertools.product(range(options), repeat=units)))
    at = np.arange(units)
    total = problem.distortions[at, every].sum(1)
    for resource in problem.resources:
        total[resource.costs[at, every].sum(1) > resource.limit] = np.inf
    return total.min()


def within(solution):
    """Whether costs keep to budgets, but for rounding."""
    return all(
        cost <= solution.budgets[name] * (1 + 1e-9)
        for name, cost in solution.costs.items()
    )


def curves(units, bits, seed, noise=0.3):
    """Distortions that fall about fourfold a bit, and sizes of units."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, units) * 3072.0
    scale = rng.lognormal(0, 2, units) * sizes
    spread = rng.lognormal(0, noise, (units, len(bits)))
    return sizes, scale[:, None] * 4.0 ** -np.array(bits) * spread
