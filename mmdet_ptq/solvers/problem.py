# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Multiple-choice knapsacks: one option of each unit, within budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import BudgetError

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]

MAX_OPTIONS = 255
#: what rounding may add to a sum, as a share of it
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Resource:
    """What options take of a budget.

    Attributes:
        name (str): For messages, e.g. ``'mean bits'``.
        costs (array): ``[U, K]``, what option k of unit u takes, from 0.
        budget (float): How much there is, in ``unit``.
        unit (float): Costs in one of the numbers that users read: all
            elements for mean bits, 8 for bytes that cost bits. Defaults to 1.
        sizes (array, optional): ``[U]``, elements of each unit, where costs
            are sizes times bits.
    """

    name: str
    costs: Floats
    budget: float
    unit: float = 1.0
    sizes: Floats | None = None

    @classmethod
    def mean_bits(
        cls,
        sizes: Sequence[float] | Floats,
        bits: Sequence[float] | Floats,
        budget: float,
    ) -> 'Resource':
        """Bits of an element, averaged over the elements of all units.

        Args:
            sizes (Sequence): ``[U]``, elements of each unit.
            bits (Sequence): ``[K]``, widths that every unit may have.
            budget (float): The average allowed.
        """
        each, costs = _products(sizes, bits)
        return cls('mean bits', costs, budget, float(each.sum()), each)

    @classmethod
    def bytes(
        cls,
        sizes: Sequence[float] | Floats,
        bits: Sequence[float] | Floats,
        budget: float,
    ) -> 'Resource':
        """Bytes of all units; arguments of :meth:`mean_bits`."""
        each, costs = _products(sizes, bits)
        return cls('bytes', costs, budget, 8.0, each)

    @property
    def limit(self) -> float:
        """The budget in costs; sums are rounded, so a little above it."""
        return float(self.budget * self.unit * (1 + ROUNDING))

    def total(self, choice: Ints) -> float:
        """What a choice takes, in costs."""
        return float(self.costs[np.arange(len(choice)), choice].sum())


@dataclass(frozen=True, eq=False)
class Problem:
    """One option of each unit is to be chosen, with the least distortion.

    Attributes:
        distortions (array): ``[U, K]`` float64; the total is their sum.
            Infinity or NaN where a unit does not have an option, so that
            units may have different numbers of them.
        resources (Sequence[Resource]): Budgets that hold at once.

    Raises:
        ValueError: On shapes that do not fit each other, a unit without an
            option, costs below 0 or not finite, budgets that are no numbers.
    """

    distortions: Floats
    resources: tuple[Resource, ...] = field(default=())

    def __post_init__(self) -> None:
        given = np.array(self.distortions, np.float64)
        if given.ndim != 2 or 0 in given.shape:
            raise ValueError(
                'distortions must be a table of units by options, got shape '
                f'{given.shape}'
            )
        given[~np.isfinite(given)] = np.inf
        empty = np.flatnonzero(np.isinf(given).all(1))
        if len(empty):
            raise ValueError(f'unit {empty[0]} has no option left to choose')
        if given.shape[1] > MAX_OPTIONS:
            raise ValueError(
                f'a unit may have {MAX_OPTIONS} options at most, got '
                f'{given.shape[1]}'
            )
        found = tuple(_checked(r, given) for r in self.resources)
        names = [r.name for r in found]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                'a problem needs one or several budgets of different names, '
                f'got {names}'
            )
        object.__setattr__(self, 'distortions', given)
        object.__setattr__(self, 'resources', found)

    @property
    def allowed(self) -> Bools:
        """``[U, K]``, which options there are."""
        return np.isfinite(self.distortions)

    def bounds(self, resource: Resource) -> tuple[float, float]:
        """Budgets from the least that can be met to the most of use.

        Args:
            resource (Resource): One of ``resources``.

        Returns:
            tuple[float, float]: Of the cheapest options and of the
            costliest, in the unit of its budget.
        """
        low = np.where(self.allowed, resource.costs, np.inf).min(1).sum()
        high = np.where(self.allowed, resource.costs, -np.inf).max(1).sum()
        return float(low / resource.unit), float(high / resource.unit)

    def check_feasible(self) -> None:
        """Refuses a budget that even the cheapest options exceed.

        Raises:
            BudgetError: With the budgets that can be met.
        """
        for resource in self.resources:
            low, high = self.bounds(resource)
            if low * resource.unit > resource.limit:
                raise BudgetError(
                    f'a budget of {resource.budget:.10g} {resource.name} '
                    f'cannot be met: the cheapest options take {low:.10g}; '
                    f'give {low:.10g} to {high:.10g}'
                )

    def only(self, method: str) -> Resource:
        """The one resource, for methods that can hold no more.

        Raises:
            BudgetError: If there are several.
        """
        if len(self.resources) > 1:
            names = ', '.join(r.name for r in self.resources)
            raise BudgetError(
                f'method {method!r} holds one budget, the problem has '
                f"{len(self.resources)} ({names}): use method='milp'"
            )
        return self.resources[0]

    def distortion(self, choice: Ints) -> float:
        """Total distortion of a choice ``[U]``."""
        return float(self.distortions[np.arange(len(choice)), choice].sum())


@dataclass(frozen=True, eq=False)
class Solution:
    """A choice and what it comes to.

    Attributes:
        choice (array): int64 ``[U]``, the option of each unit.
        distortion (float): Total.
        costs (Mapping[str, float]): Of each resource, in the unit of its
            budget.
        budgets (Mapping[str, float]): As they were given.
        method (str): Which found it.
        in_time (bool): False if a time limit ended the search: there may be
            a better choice, and another run may find it.
    """

    choice: Ints
    distortion: float
    costs: Mapping[str, float]
    budgets: Mapping[str, float]
    method: str
    in_time: bool = True

    @classmethod
    def of(
        cls, problem: Problem, choice: Ints, method: str, in_time: bool = True
    ) -> 'Solution':
        """Adds up what a choice takes.

        Args:
            problem (Problem): What it was chosen for.
            choice (array): ``[U]``.
            method (str): Which chose it.
            in_time (bool): Whether no time limit ended the search.
        """
        choice = np.asarray(choice, np.int64)
        return cls(
            choice,
            problem.distortion(choice),
            {r.name: r.total(choice) / r.unit for r in problem.resources},
            {r.name: r.budget for r in problem.resources},
            method,
            in_time,
        )


def mean_bits_problem(
    sizes: Sequence[float] | Floats,
    bits: Sequence[float] | Floats,
    distortions: Sequence[Sequence[float]] | Floats,
    budget: float,
) -> Problem:
    """The problem of bits for each unit, at so many bits on average.

    Args:
        sizes (Sequence): ``[U]``, elements of each unit.
        bits (Sequence): ``[K]``, widths that units may have.
        distortions (Sequence): ``[U, K]``; infinity or NaN where a unit does
            not have a width.
        budget (float): Mean bits allowed.

    Raises:
        ValueError: As :class:`Problem`.
    """
    found = np.array(distortions, np.float64)
    widths = np.asarray(bits, np.float64)
    if found.shape != (len(sizes), len(widths)):
        raise ValueError(
            f'distortions of {len(sizes)} units at {len(widths)} widths are '
            f'a table of that shape, got {found.shape}'
        )
    return Problem(found, (Resource.mean_bits(sizes, bits, budget),))


def decreasing(distortions: Sequence[Sequence[float]] | Floats) -> Floats:
    """Measured curves that do not rise: their cumulative minimum.

    Args:
        distortions (Sequence): ``[U, K]``, options in the order of their
            costs; NaN where a unit does not have one.

    Returns:
        array: ``[U, K]``, NaN where it was.
    """
    curves = np.asarray(distortions, np.float64)
    missing = np.isnan(curves)
    lowest = np.minimum.accumulate(np.where(missing, np.inf, curves), 1)
    return np.where(missing, np.nan, lowest)


def _products(
    sizes: Sequence[float] | Floats, bits: Sequence[float] | Floats
) -> tuple[Floats, Floats]:
    each = np.asarray(sizes, np.float64)
    widths = np.asarray(bits, np.float64)
    if each.ndim != 1 or widths.ndim != 1:
        raise ValueError(
            'sizes and bits must be lists of numbers, got shapes '
            f'{each.shape} and {widths.shape}'
        )
    if not (each > 0).all():
        raise ValueError(
            f'sizes of units must be above 0, got {each[~(each > 0)][0]:g}'
        )
    return each, each[:, None] * widths


def _checked(resource: Resource, distortions: Floats) -> Resource:
    """A resource with costs of float64, 0 where there is no option."""
    name, budget, unit = resource.name, resource.budget, resource.unit
    costs = np.array(resource.costs, np.float64)
    if costs.shape != distortions.shape:
        raise ValueError(
            f'costs of {name} must be of the shape of the distortions, '
            f'{distortions.shape}, got {costs.shape}'
        )
    costs[np.isinf(distortions)] = 0
    if not np.isfinite(costs).all() or (costs < 0).any():
        raise ValueError(f'costs of {name} must be finite and not below 0')
    if not np.isfinite(budget) or not np.isfinite(unit) or unit <= 0:
        raise ValueError(
            f'the budget of {name} must be a number, and its unit one above '
            f'0, got {budget!r} and {unit!r}'
        )
    return Resource(name, costs, float(budget), float(unit), resource.sizes)
