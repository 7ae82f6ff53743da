# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How many grids of each image an input gets, within a budget."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from ..calibration import Images, Session, Sweep, frozen, of_all_images
from ..checks import one_of, whole
from ..cost import grouping_bops
from ..detectors import adapter_for, why_no_outputs
from ..errors import CalibrationError, NumericError, QuantConfigError
from ..layers import quantizing
from ..losses import GlobalLoss, build_loss
from ..quantizers import InstanceGroupQuantizer
from ..records import GroupsRecord
from ..registry import PASSES
from ..solvers import METHODS, Problem, Resource, solve
from ..structures import Port
from .base import BasePass

CANDIDATES = (4, 6, 8, 10, 12, 16, 24)
OTHERS = ('quantized', 'float')
PERTURBATION = dict(type='OutputPerturbation')


@dataclass
class Site:
    """Ports that share grids of each image.

    Attributes:
        group (list[Port]): The ports.
        options (list[int]): Numbers of grids that they may get.
        budget (int): The number that the budget is made of.
        before (int): The number that rules say.
        ends (dict): Lower and upper ends of the grids, by their number.
        bops (dict[int, int]): What all groupings of the detector cost
            together, by its number.
    """

    group: list[Port]
    options: list[int]
    budget: int
    before: int
    ends: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    bops: dict[int, int] = field(default_factory=dict)

    @property
    def layers(self) -> set[str]:
        """Names of the layers."""
        return {name for name, _ in self.group}

    def set(self, session: Session, groups: int) -> None:
        """Gives the ports so many grids."""
        session.regroup(self.group, groups).set_range(*self.ends[groups])

    def look(self, session: Session) -> None:
        """Finds ends and costs of all numbers; changes nothing in the end.

        Raises:
            CalibrationError: If there are no statistics of the input.
        """
        name, port = self.group[0]
        for groups in sorted({*self.options, self.budget, self.before}):
            quantizer = session.regroup(self.group, groups)
            observer = session.stats.of((name, port))
            if observer is None:
                raise CalibrationError(
                    f'{name}: there are no statistics for its {port}; put '
                    'Observe after the pass that replaced its quantizer'
                )
            self.ends[groups] = observer.ranges(quantizer)
            found = grouping_bops(session.model, session.graph, session.plan)
            self.bops[groups] = sum(found.values())
        self.set(session, self.before)


@PASSES.register_module()
class AllocateGroups(BasePass):
    """A number of grids for each input, within a budget (IGQ-ViT, Eq. 10).

    Moon et al. (2024) give each layer a number of grids of its own, so that
    what choosing them and adding up their products costs is at most what it
    would with ``groups`` grids in each layer. For each input with an
    ``InstanceGroupQuantizer`` and each number of grids, the detector's outputs
    are compared with those that it gives with this layer left float. The sum
    of these perturbations is made least. Images keep the proposals of the
    float detector.

    Args:
        groups (int): Number of grids that the budget is made of, from the
            smallest of ``candidates`` to the greatest. Defaults to 8.
        candidates (Sequence[int]): Numbers that a layer may get; of those
            above its channels none. Defaults to (4, 6, 8, 10, 12, 16, 24).
        images (int): How many calibration images each rank looks at.
            Defaults to 8.
        others (str): What the other layers are meanwhile: ``'quantized'``,
            with the grids that their rules say, or ``'float'``. Defaults
            to ``'quantized'``.
        solver (str): ``'dp'``, ``'milp'``, ``'hull'`` or ``'lagrange'`` (see
            :func:`mmdet_ptq.solvers.solve`). Defaults to ``'dp'``.
        loss (dict): What a perturbation is. Defaults to
            ``dict(type='OutputPerturbation')``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'observers', 'ranges'})
    gives: ClassVar[frozenset[str]] = frozenset({'chosen'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'chosen', 'corrected', 'learned', 'noisy'}
    )

    def __init__(
        self,
        groups: int = 8,
        candidates: Sequence[int] = CANDIDATES,
        images: int = 8,
        others: str = 'quantized',
        solver: str = 'dp',
        loss: dict = PERTURBATION,
    ) -> None:
        self.groups = whole('groups', groups, 1)
        self.candidates = [whole('candidates', g, 1) for g in candidates]
        if self.candidates != sorted(set(self.candidates)) or not candidates:
            raise ValueError(
                'candidates must be growing numbers of grids, got '
                f'{candidates!r}'
            )
        least, most = self.candidates[0], self.candidates[-1]
        if not least <= groups <= most:
            raise ValueError(
                f'groups={groups} is not from {least} to {most}, the smallest '
                'and the greatest of candidates: below them no choice keeps '
                'to the budget, above them every choice does'
            )
        self.images = whole('images', images, 1)
        self.others = one_of('others', others, OTHERS)
        self.solver = one_of('solver', solver, METHODS)
        self.loss = loss
        build_loss(loss, 'AllocateGroups.loss', GlobalLoss)

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`."""
        ports = self._ports(session)
        why = why_no_outputs(session.model, session.graph)
        if ports and why:
            raise QuantConfigError(
                "AllocateGroups: it compares the detector's outputs, but "
                f'{why}; leave this pass out'
            )
        for group in ports:
            self._site(session, group)

    def _ports(self, session: Session) -> list[list[Port]]:
        """Groups of ports with grids of each image, in execution order."""
        layers = session.layers
        return [
            group
            for group in session.plan.groups
            if isinstance(
                layers[group[0][0]].act_quantizers[group[0][1]],
                InstanceGroupQuantizer,
            )
        ]

    def _site(self, session: Session, group: list[Port]) -> Site:
        """What may become of one input."""
        name, port = group[0]
        node = session.graph.layers[name]
        quantizer = session.layers[name].act_quantizers[port]
        before = quantizer.num_groups
        if quantizer.granularity.kind == 'row':
            return Site(group, self.candidates, self.groups, before)
        value = node.calls[0].inputs[node.ports.index(port)]
        shape = session.graph.values[value].shape
        channels = quantizer.granularity.num_rows(shape)
        found = [g for g in self.candidates if g <= channels]
        if not found:
            raise QuantConfigError(
                f'AllocateGroups: {name} has {channels} input channels, less '
                f'than the smallest of candidates, {self.candidates[0]}; add '
                'a smaller one, or give the layer another quantizer by a rule'
            )
        return Site(group, found, min(self.groups, channels), before)

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        sites = [self._site(session, one) for one in self._ports(session)]
        if not sites:
            session.warn(
                'AllocateGroups: no input has an InstanceGroupQuantizer '
                'here, so nothing was changed'
            )
            return
        with session.stage('group allocation'):
            for site in sites:
                site.look(session)
            table = self._measured(session, sites)
            self._choose(session, sites, table)

    def _measured(
        self, session: Session, sites: list[Site]
    ) -> list[list[float]]:
        """Perturbations of each site and option, means over all images."""
        table: list[list[float]] = _furthest(session.state.get('table', []))
        # the order of execution, so that what comes before is kept
        with (
            session.resumable(lambda: dict(table=list(table))),
            session.cache() as cache,
            frozen(session.model),
        ):
            adapter = adapter_for(session.model, session.graph, True)
            images = Images(session, cache, adapter, [], self.images)
            sweep = Sweep(session.model, session.graph.units, cache)
            loss = build_loss(self.loss, 'AllocateGroups.loss', GlobalLoss)
            with sweep.watching():
                for k in range(len(table), len(sites)):
                    name = sites[k].group[0][0]
                    session.progress('grids', name, k, len(sites))
                    one = _Perturbed(session, images, sweep, loss, sites[k])
                    table.append(one.losses(self.others == 'quantized'))
                    session.save()
        return table

    def _choose(
        self, session: Session, sites: list[Site], table: list[list[float]]
    ) -> None:
        """Solves for the numbers, and sets them."""
        least = [min(site.bops.values()) for site in sites]
        width = len(self.candidates)
        psi = np.full((len(sites), width), np.inf)
        costs = np.zeros((len(sites), width))
        for i, site in enumerate(sites):
            psi[i, : len(table[i])] = table[i]
            here = [site.bops[g] - least[i] for g in site.options]
            costs[i, : len(here)] = here
        budget = sum(
            site.bops[site.budget] - low
            for site, low in zip(sites, least, strict=True)
        )
        resource = Resource('BOPs', costs, budget)
        solution = solve(Problem(psi, (resource,)), self.solver)
        found = []
        for i, (site, k) in enumerate(
            zip(sites, solution.choice.tolist(), strict=True)
        ):
            found.append(site.options[k])
            site.set(session, found[-1])
            session.records.append(
                GroupsRecord(
                    site.group[0][0],
                    site.group[0][1],
                    [name for name, _ in site.group],
                    site.options,
                    [p if isfinite(p) else None for p in table[i]],
                    [int(c) for c in costs[i, : len(site.options)]],
                    found[-1],
                )
            )
        session.notes.append(
            f'AllocateGroups: {len(sites)} inputs have {min(found)} to '
            f'{max(found)} grids, {np.mean(found):.1f} on average, for no '
            f'more BOPs than {self.groups} grids in each'
        )


class _Perturbed:
    """The detector with other groups at one site.

    Args:
        session (Session): The running quantization.
        images (Images): What it is run on.
        sweep (Sweep): Keeps what comes before the site.
        loss (GlobalLoss): What a perturbation is.
        site (Site): The site.
    """

    def __init__(
        self,
        session: Session,
        images: Images,
        sweep: Sweep,
        loss: GlobalLoss,
        site: Site,
    ) -> None:
        self.session = session
        self.images = images
        self.sweep = sweep
        self.loss = loss
        self.site = site

    def losses(self, quantized: bool) -> list[float]:
        """Mean perturbation over the images of all ranks, of each option.

        Args:
            quantized (bool): Whether the other layers are.

        Raises:
            NumericError: If all of them are NaN or Inf.
        """
        site, mine = self.site, self.images.mine
        others = set(self.session.layers) - site.layers if quantized else set()
        with quantizing(self.session.layers, others, others):
            targets = {j: self.loss.targets(self._run(j)) for j in mine}
        found: dict[int, list[Tensor]] = {j: [] for j in mine}
        every = others | site.layers
        with quantizing(self.session.layers, every, every):
            for groups in site.options:
                site.set(self.session, groups)
                self.sweep.change(site.layers)
                for j in mine:
                    loss = self.loss(self._run(j), targets[j])
                    found[j].append(loss.double())
        site.set(self.session, site.before)
        self.sweep.change(site.layers)
        rows = of_all_images(
            {j: torch.stack(some).tolist() for j, some in found.items()}
        )
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        name = site.group[0][0]
        for groups, mean in zip(site.options, means, strict=True):
            if not isfinite(mean):
                self.session.warn(
                    f'AllocateGroups: {name} cannot have {groups} grids: the '
                    'detector then gives NaN or Inf'
                )
        if not any(map(isfinite, means)):
            raise NumericError(
                'AllocateGroups: the detector gives NaN or Inf with any '
                f'number of grids of {name}; give it another quantizer by a '
                'rule'
            )
        return means

    def _run(self, j: int) -> Any:
        return self.sweep.run(j, lambda: self.images.run(j), self.site.layers)


def _furthest(table: list) -> list:
    """What the rank that was saved last has; one may be a step behind."""
    return list(max(all_gather_object(table), key=len))
