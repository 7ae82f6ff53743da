# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A budget of bit operations: MACs times the bits of both operands."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from ...calibration import Session
from ...cost import count_macs, operand_bits
from ...errors import BudgetError
from ...solvers import Resource
from .operands import NAMES, Operand
from .problems import Picks, WidthProblem

Products = list[tuple[float, list[int], list[float]]]
"""Of layers: MACs, indices of operands that may change, and fixed bits."""


def bops_problem(
    session: Session,
    operands: Sequence[Operand],
    widths: Sequence[int],
    base: Mapping[str, int],
    amount: float | None,
) -> WidthProblem:
    """Layers that have an operand in common are one decision.

    The product of two widths is no sum over tensors, so that both are chosen
    at once: a width for the weights of such layers and one for their inputs.

    Args:
        session (Session): With graph and plan.
        operands (Sequence[Operand]): Whole tensors.
        widths (Sequence[int]): All widths, rising.
        base (Mapping[str, int]): Width of each kind, where there is one.
        amount (float, optional): The budget; None: what ``base`` takes.

    Raises:
        BudgetError: If operands that need a common width have none.
    """
    at = {port: i for i, one in enumerate(operands) for port in one.holders}
    products = _products(session, at)
    picks: list[list[Picks]] = []
    costs: list[list[float]] = []
    uniform = 0.0
    for members in _components(products, len(operands)):
        kinds = list(dict.fromkeys(operands[i].kind for i in members))
        common = [_common(operands, members, kind) for kind in kinds]
        options: list[Picks] = []
        prices = []
        for pair in product(*common):
            bits = dict(zip(kinds, pair, strict=True))
            options.append(
                tuple(
                    (i, widths.index(bits[operands[i].kind])) for i in members
                )
            )
            prices.append(_price(products, members, operands, bits))
        uniform += _price(products, members, operands, base)
        picks.append(options)
        costs.append(prices)
    table = np.zeros((len(costs), max(map(len, costs))))
    for row, prices in zip(table, costs, strict=True):
        row[: len(prices)] = prices
    budget = uniform if amount is None else amount
    return WidthProblem(
        'layers', Resource('BOPs', table, float(budget)), picks
    )


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
