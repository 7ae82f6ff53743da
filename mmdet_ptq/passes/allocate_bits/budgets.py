# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Budgets of bits, and the choices of widths that they are about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ...calibration import Session
from ...cost import count_macs, operand_bits
from ...errors import BudgetError
from ...solvers import Problem, Resource, Solution, solve
from .curves import Floats
from .operands import KINDS, Operand

BUDGETS = ('separate', 'joint', 'bytes', 'bops')
#: how a kind is called in messages
NAMES = dict(weight='weights', input='inputs')
#: what rounding may add to a sum of costs
SLACK = 1e-9

Picks = tuple[tuple[int, int], ...]
"""Unit and column of its width, for each unit that an option decides on."""
Products = list[tuple[float, list[int], list[float]]]
"""Of layers: MACs, indices of operands that may change, and fixed bits."""


@dataclass(frozen=True, eq=False)
class Part:
    """One budget and what may be chosen within it.

    Attributes:
        name (str): What is chosen, for messages.
        resource (Resource): Costs of each option of each decision.
        picks (list[list[Picks]]): What each of these means.
    """

    name: str
    resource: Resource
    picks: list[list[Picks]]

    def problem(self, added: Floats) -> Problem:
        """What is to be solved.

        Args:
            added (Floats): ``[U, K]``, distances of units at widths; NaN
                where a unit does not have one.
        """
        shape = self.resource.costs.shape
        table = np.full(shape, np.inf)
        for i, options in enumerate(self.picks):
            for k, picks in enumerate(options):
                table[i, k] = sum(
                    added[unit, column] for unit, column in picks
                )
        return Problem(table, (self.resource,))

    def check(self, added: Floats) -> None:
        """Refuses a budget that is out of reach, on either side.

        Args:
            added (Floats): As of :meth:`problem`; its numbers do not matter.

        Raises:
            BudgetError: With those that can be met.
        """
        problem = self.problem(added)
        resource = self.resource
        low, high = problem.bounds(resource)
        slack = SLACK * high
        if low - slack <= resource.budget <= high + slack:
            return
        raise BudgetError(
            f'AllocateBits: {self.name}: a budget of {resource.budget:.6g} '
            f'{resource.name} is out of reach: widths from floor to most take '
            f'{low:.6g} to {high:.6g}; give one of these, or another floor or '
            'most'
        )


@dataclass(frozen=True)
class Budget:
    """What the widths may take.

    Attributes:
        kind (str): One of :data:`BUDGETS`.
        means (Mapping[str, float]): Mean bits of each kind.
        amount (float, optional): Bytes of weights, or bit operations; None:
            what one width takes.
        base (Mapping[str, int]): That width, of each kind.
    """

    kind: str
    means: Mapping[str, float]
    amount: float | None
    base: Mapping[str, int]

    def parts(
        self,
        session: Session,
        operands: Sequence[Operand],
        widths: Sequence[int],
    ) -> list[Part]:
        """The problems to be solved, each by itself.

        Args:
            session (Session): With graph and plan.
            operands (Sequence[Operand]): What is allocated.
            widths (Sequence[int]): All widths, rising.
        """
        units = _Units(operands, widths)
        if self.kind == 'bops':
            return [self._bops(session, operands, units)]
        if self.kind == 'joint':
            every = units.of(KINDS)
            sizes = units.sizes[every]
            means = [self.means[units.kinds[i]] for i in every]
            mean = float((sizes * means).sum() / sizes.sum())
            name = ' and '.join(NAMES.values())
            return [units.part(name, every, mean)]
        found = []
        for kind in KINDS:
            mine = units.of((kind,))
            if not len(mine):
                continue
            if kind == 'weight' and self.kind == 'bytes':
                amount = self.amount
                if amount is None:
                    amount = units.sizes[mine].sum() * self.base[kind] / 8
                found.append(units.part(NAMES[kind], mine, amount, 'bytes'))
            else:
                found.append(units.part(NAMES[kind], mine, self.means[kind]))
        return found

    def _bops(
        self,
        session: Session,
        operands: Sequence[Operand],
        units: '_Units',
    ) -> Part:
        """Layers that have an operand in common are one decision."""
        at = {p: i for i, one in enumerate(operands) for p in one.holders}
        products = _products(session, at)
        picks: list[list[Picks]] = []
        costs: list[list[float]] = []
        uniform = 0.0
        for members in _components(products, len(operands)):
            kinds = [operands[i].kind for i in members]
            options, prices = [], []
            for pair in product(*(_common(operands, members, k)
                                  for k in dict.fromkeys(kinds))):  # fmt: skip
                bits = dict(zip(dict.fromkeys(kinds), pair, strict=True))
                options.append(
                    tuple(
                        (units.first[i], units.column[bits[operands[i].kind]])
                        for i in members
                    )
                )
                prices.append(_price(products, members, operands, bits))
            uniform += _price(products, members, operands, self.base)
            picks.append(options)
            costs.append(prices)
        most = max(map(len, costs))
        table = np.zeros((len(costs), most))
        for i, prices in enumerate(costs):
            table[i, : len(prices)] = prices
        budget = uniform if self.amount is None else self.amount
        return Part('layers', Resource('BOPs', table, float(budget)), picks)


class _Units:
    """Units of all operands, one after the other."""

    def __init__(
        self, operands: Sequence[Operand], widths: Sequence[int]
    ) -> None:
        self.widths = list(widths)
        self.column = {w: k for k, w in enumerate(widths)}
        self.kinds = [one.kind for one in operands for _ in one.sizes]
        self.allowed = [one.widths for one in operands for _ in one.sizes]
        self.sizes = np.array(
            [size for one in operands for size in one.sizes], np.float64
        )
        counts = [len(one.sizes) for one in operands]
        self.first = np.cumsum([0, *counts])[:-1].tolist()

    def of(self, kinds: Sequence[str]) -> list[int]:
        """Units of some kinds."""
        return [i for i, kind in enumerate(self.kinds) if kind in kinds]

    def part(
        self,
        name: str,
        members: Sequence[int],
        budget: float,
        unit: str = 'mean_bits',
    ) -> Part:
        """A budget of sizes times bits, each unit by itself."""
        sizes = self.sizes[list(members)]
        make = Resource.bytes if unit == 'bytes' else Resource.mean_bits
        picks: list[list[Picks]] = [
            [((i, k),) for k in range(len(self.widths))] for i in members
        ]
        return Part(name, make(sizes, self.widths, budget), picks)


def solved(
    part: Part, added: Floats, solver: str, options: Mapping[str, object]
) -> tuple[dict[int, int], Solution]:
    """Chooses widths within a budget.

    Args:
        part (Part): The budget.
        added (Floats): ``[U, K]``.
        solver (str): Method of :func:`mmdet_ptq.solvers.solve`.
        options (Mapping[str, object]): Of the method.

    Returns:
        tuple[dict[int, int], Solution]: Column of the width of each unit,
        and what it comes to.
    """
    solution = solve(part.problem(added), solver, **options)
    chosen = {
        unit: column
        for options_of, k in zip(part.picks, solution.choice, strict=True)
        for unit, column in options_of[k]
    }
    return chosen, solution


def cost_of_widths(part: Part, columns: Sequence[int]) -> float | None:
    """What given widths take of a budget, in its unit.

    Args:
        part (Part): The budget.
        columns (Sequence[int]): Column of the width of each unit.

    Returns:
        float | None: None if no option has these widths.
    """
    total = 0.0
    for i, options in enumerate(part.picks):
        fits = (
            k
            for k, picks in enumerate(options)
            if all(columns[unit] == column for unit, column in picks)
        )
        at = next(fits, None)
        if at is None:
            return None
        total += float(part.resource.costs[i, at])
    return total / part.resource.unit


def _products(session: Session, at: Mapping[tuple[str, str], int]) -> Products:
    """MACs of each layer, its operands that may change, and fixed bits."""
    found = []
    macs = count_macs(session.model, session.graph)
    for name, plan in session.plan.layers.items():
        if name not in macs:
            continue
        # a product has two ports and no weight
        ports = ['weight', *plan.acts][-2:]
        members, fixed = [], []
        for port, bits in zip(ports, operand_bits(plan), strict=True):
            if (name, port) in at:
                members.append(at[name, port])
            else:
                fixed.append(bits)
        if members:
            found.append((float(sum(macs[name])), members, fixed))
    return found


def _components(products: Products, count: int) -> list[list[int]]:
    """Operands that layers bring together, directly or over others."""
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for _, members, _ in products:
        for one in members[1:]:
            root[find(one)] = find(members[0])
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def _common(
    operands: Sequence[Operand], members: Sequence[int], kind: str
) -> list[int]:
    """Widths that all operands of a kind have."""
    sets = [set(operands[i].widths) for i in members
            if operands[i].kind == kind]  # fmt: skip
    common = sorted(set.intersection(*sets))
    if not common:
        names = ', '.join(operands[i].name for i in members)
        raise BudgetError(
            f"AllocateBits: budget='bops' gives the {NAMES[kind]} of layers "
            f'that share an input one width, and {names} have none in common; '
            "use budget='separate'"
        )
    return common


def _price(
    products: Products,
    members: Sequence[int],
    operands: Sequence[Operand],
    bits: Mapping[str, int],
) -> float:
    """Bit operations of the layers of a component at some widths."""
    inside, total = set(members), 0.0
    for macs, ours, fixed in products:
        if ours[0] in inside:
            both = [bits[operands[i].kind] for i in ours]
            total += macs * float(np.prod([*both, *fixed]))
    return total
