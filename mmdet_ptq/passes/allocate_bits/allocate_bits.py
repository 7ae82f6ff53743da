# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that gives each tensor the bits that it needs."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from typing import ClassVar

import numpy as np
import torch
from mmengine.dist import get_world_size

from ...calibration import Images, Session, frozen
from ...checks import number, one_of, whole
from ...detectors import adapter_for
from ...errors import BudgetError, QuantConfigError
from ...quant_cfg import check_rule, patterns_of
from ...quantizers import ChannelGroups
from ...registry import PASSES
from ...solvers import METHODS, mean_bits_problem, solve
from ..base import BasePass
from ..reconstruct import Reconstruct
from .adopt import adopt, line, records
from .bench import Bench
from .budgets import BUDGETS, Budget
from .choice import widths_of
from .curves import Measuring
from .groups import export, observe_groups
from .objectives import OBJECTIVES, distance_of, refuse_silent
from .operands import KINDS, NAMES, Operand, Wanted
from .problems import WidthProblem, solved
from .search import search
from .trial_quantizers import make_trial_quantizers

CURVES = ('probes', 'exact')


@PASSES.register_module()
class AllocateBits(BasePass):
    """Gives bits to where they matter most, within a budget (F-LBQ, RDO-Q).

    A width is found for each weight and each input, or with ``channels`` for
    each group of their channels. First, curves: what each width of one of
    them adds to the distance from the float detector. Then a solver chooses
    widths whose curves add up to the least within the budget.

    Allocated are the weights and inputs in ``scope`` that have the widths of
    ``quant_cfg.bits``; those that rules give other widths keep them and take
    nothing of the budget. What is not allocated is float while curves are
    measured. The quantizers stay what they are, with other bits; groups of
    channels get ``ChannelGroups`` of them. A tensor that several layers read
    has one width. Where the choice is measured to be farther from the float
    detector than one width for all, the latter stays.

    A probe is a random direction v of the detector's outputs, of which one
    backward serves all curves: the mean square of ``<v, J d>`` is the squared
    distance that a change d of a tensor makes, to first order. More probes
    make curves less noisy.

    Args:
        objective (str): What the distance is of. ``'output'``: the
            detector's classes and boxes, weighed by their confidence.
            ``'feature'``: the maps that the backbone gives, as in F-LBQ;
            ``'roi'``: the outputs of the RoI heads of a two-stage detector.
            Defaults to ``'output'``.
        scope (str | list[str]): Which layers may change, as ``match`` of a
            rule; a tensor only if all its readers may. Defaults to ``'*'``.
        channels (int, optional): Channels of a group: output channels of a
            weight, channels of an input. Groups of an input are equal, so
            they have the next lower number that divides its channels. Whole
            stay operands of products, inputs that have grids for groups of
            channels already, and inputs whose groups would have less than a
            quarter of this. Rounding cannot be learned (``AdaRound``) where
            groups of a weight differ. Defaults to None: no groups, each
            tensor has one width.
        budget (str): ``'separate'``: mean bits of weights and of inputs, by
            their elements, each for itself; scales and tables are not
            counted. ``'joint'``: of both together. ``'bytes'``: bytes of
            weights, with their scales and tables; inputs by their mean bits.
            ``'bops'``: bit operations of the layers in scope; those that
            read an input in common get one width for their weights and one
            for their inputs, and so do both inputs of a product. Defaults to
            ``'separate'``.
        mean_weight_bits (float, optional): Mean bits of weights. Defaults to
            None: those of ``quant_cfg.bits``.
        mean_act_bits (float, optional): Mean bits of inputs. Defaults to
            None: those of ``quant_cfg.bits``.
        amount (float, optional): Budget of ``'bytes'`` or ``'bops'``.
            Defaults to None: what ``quant_cfg.bits`` takes.
        floor (int, optional): Least width, of 2 to ``most - 1``. Defaults
            to None: one below the mean, rounded up, and 2 at least.
        most (int): Greatest width, of 3 to 8. Defaults to 8.
        solver (str): ``'dp'`` and ``'milp'`` find the optimum, ``'hull'``
            and ``'lagrange'`` come near it in less time. Defaults to
            ``'dp'``.
        solver_args (dict, optional): Options of the solver. ``'dp'``:
            ``max_sums``, how many sums it may hold. ``'lagrange'``:
            ``strict=False`` takes a choice near the budget, even above it;
            ``tolerance``, how near is near enough; ``compat=True`` prices
            bits as RDO-Q's code does, of mean bits and bytes. ``'milp'``:
            ``gap``, the relative distance from the optimum at which it may
            stop, and ``time_limit`` in seconds. Defaults to None: none.
        curves (str): How they are measured. ``'probes'``: by gradients;
            ``'exact'``: by a forward of each image for each tensor or group
            and each of its widths. Defaults to ``'probes'``.
        probes (int): Probes of an image, each of which takes a backward.
            Defaults to 2.
        rounds (int): How often curves are measured: first with all else
            float, then with all else at the widths found before. Defaults
            to 1.
        images (int): How many calibration images are used, of all ranks.
            Defaults to 64.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'observers'})
    gives: ClassVar[frozenset[str]] = frozenset({'allocated'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'allocated', 'ranges', 'chosen', 'corrected', 'learned', 'noisy'}
    )

    def __init__(
        self,
        objective: str = 'output',
        scope: str | Sequence[str] = '*',
        channels: int | None = None,
        budget: str = 'separate',
        mean_weight_bits: float | None = None,
        mean_act_bits: float | None = None,
        amount: float | None = None,
        floor: int | None = None,
        most: int = 8,
        solver: str = 'dp',
        solver_args: dict | None = None,
        curves: str = 'probes',
        probes: int = 2,
        rounds: int = 1,
        images: int = 64,
    ) -> None:
        self.objective = one_of('objective', objective, OBJECTIVES)
        rule = dict(match=scope, skip=False)
        check_rule(rule, 'AllocateBits.scope')
        self.scope = tuple(patterns_of(rule))
        self.budget = one_of('budget', budget, BUDGETS)
        self.channels = channels
        if channels is not None:
            whole('channels', channels, 1)
            if budget == 'bops':
                raise ValueError(
                    "budget='bops' is one of whole layers; set channels=None"
                )
        self.means = dict(
            weight=_mean('mean_weight_bits', mean_weight_bits),
            input=_mean('mean_act_bits', mean_act_bits),
        )
        _check_amount(budget, amount, self.means)
        self.amount = amount
        self.most = whole('most', most, 3)
        number('most', most, 3, 8)
        self.floor = floor
        if floor is not None and whole('floor', floor, 2) >= most:
            raise ValueError(
                f'floor={floor!r}, the least width, is not below most={most}, '
                f'the greatest; give a floor of 2 to {most - 1}'
                + ', or a greater most'
                * (most < 8)
            )
        self.solver = one_of('solver', solver, METHODS)
        self.solver_args = dict(solver_args or {})
        # the options of a solver are checked by using it
        trial = mean_bits_problem([1], [2, 3], [[1.0, 0.0]], 3)
        try:
            solve(trial, solver, **self.solver_args)
        except QuantConfigError as error:
            raise ValueError(f'solver_args: {error}') from None
        self.curves = one_of('curves', curves, CURVES)
        self.probes = whole('probes', probes, 1)
        self.rounds = whole('rounds', rounds, 1)
        self.images = whole('images', images, 1)

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`; budgets out of reach are found."""
        distance = distance_of(session, self.objective)
        operands = self._wanted(session).find(session)
        layers = session.graph.layers
        silent = [
            one.name
            for one in operands
            if not any(distance.reaches(layers[n]) for n, _ in one.holders)
        ]
        refuse_silent(silent, self.objective)
        widths = widths_of(operands)
        nothing = np.zeros((sum(len(o.sizes) for o in operands), len(widths)))
        row = 0
        for one in operands:
            for _ in one.sizes:
                nothing[row, [w not in one.widths for w in widths]] = np.nan
                row += 1
        for problem in self._problems(session, operands):
            problem.check(nothing)
            # a kind of budget that the solver cannot hold
            solved(problem, nothing, self.solver, self.solver_args)
        grouped = [o.holders[0][0] for o in operands
                   if o.kind == 'weight' and o.channels]  # fmt: skip
        for later in session.config.built_passes:
            if grouped and isinstance(later, Reconstruct):
                later.check_weight(grouped[0], ChannelGroups)

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`; can be resumed after every image."""
        with session.stage('bit allocation'):
            operands = self._wanted(session).find(session)
            observe_groups(session, operands, self)
            trials = make_trial_quantizers(session, operands)
            bench = Bench(session, trials)
            with (
                session.resumable(partial(export, session, operands)),
                session.cache() as cache,
                frozen(session.model),
            ):
                problems = self._problems(session, operands)
                distance = distance_of(session, self.objective)
                adapter = adapter_for(
                    session.model, session.graph, distance.on_outputs
                )
                share = -(-self.images // get_world_size())
                images = Images(session, cache, adapter, [], share)
                measuring = Measuring(
                    session,
                    images,
                    self.images,
                    distance,
                    bench,
                    widths_of(operands),
                    self.objective,
                )
                with bench.mounted():
                    best, uniform = search(
                        self, session, operands, problems, measuring
                    )
            adopt(session, operands, best)
            session.records += records(self, operands, best, uniform)
            line(session, best, uniform)

    def _wanted(self, session: Session) -> Wanted:
        bits = session.config.bits
        if bits is None:
            raise QuantConfigError(
                "AllocateBits: quant_cfg has no 'bits', by which it tells "
                "what rules have pinned; add e.g. bits='w4a4'"
            )
        base = dict(weight=bits.weight, input=bits.act)
        floor = {}
        for kind, mean in self._means(base).items():
            floor[kind] = self.floor or max(2, ceil(mean) - 1)
            if floor[kind] >= self.most:
                raise BudgetError(
                    f'AllocateBits: {NAMES[kind]}: a mean of {mean:g} bits is '
                    f'above most={self.most}, the greatest width; give a '
                    f'mean of at most {self.most}, or a greater most'
                )
        return Wanted(self.scope, base, floor, self.most, self.channels)

    def _means(self, base: Mapping[str, int]) -> dict[str, float]:
        return {k: self.means[k] or float(base[k]) for k in KINDS}

    def _problems(
        self, session: Session, operands: list[Operand]
    ) -> list[WidthProblem]:
        base = self._wanted(session).base
        budget = Budget(self.budget, self._means(base), self.amount, base)
        return budget.problems(session, operands, widths_of(operands))


def _mean(name: str, value: float | None) -> float | None:
    return None if value is None else number(name, value, 2, 8)


def _check_amount(
    budget: str, amount: float | None, means: Mapping[str, float | None]
) -> None:
    """Refuses numbers that the budget does not look at."""
    if amount is not None:
        number('amount', amount, above=True)
        if budget not in ('bytes', 'bops'):
            raise ValueError(
                f"amount is for budget='bytes' or 'bops', not for {budget!r};"
                ' use mean_weight_bits and mean_act_bits'
            )
    ignored = dict(bytes=['weight'], bops=list(KINDS)).get(budget, [])
    names = dict(weight='mean_weight_bits', input='mean_act_bits')
    for kind in ignored:
        if means[kind] is not None:
            raise ValueError(
                f'budget={budget!r} does not look at {names[kind]}; use amount'
            )
