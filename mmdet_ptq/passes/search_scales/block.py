# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scales that are searched for what they do to the output of a block."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from ...calibration import (
    Images,
    Sample,
    Session,
    UnitView,
    collect_float,
    of_all_images,
)
from ...context import forward_context
from ...layers import quantizing
from ...losses import GlobalLoss, GradientWeighted
from ...quantizers import BaseQuantizer, Searchable
from ...records import SearchRecord
from ...structures import Unit
from ..reconstruct.fisher import weigh
from .component import Held
from .ends import ends_of
from .search import shares_of


@dataclass(frozen=True)
class BlockGrid:
    """What is tried for each quantizer of a block.

    Attributes:
        count (int): How many shares of the range.
        rounds (int): How often all quantizers have their turn.
        fractions (tuple[float, float]): Least and greatest share.
        elimination (float): Share of the errors, the smallest, that are left
            out.
    """

    count: int
    rounds: int
    fractions: tuple[float, float]
    elimination: float


class BlockSearch:
    """Block-wise calibration with bottom elimination (APQ-ViT, 2022).

    Of a block with float output z and gradient g there, quantizers are
    searched in turn for ``sum M (g dz)^2``, dz being what the block gives
    more than z on its float input, with its layers that were searched before
    quantized and the others float. M leaves out the positions at which
    ``|g dz|`` is small with all layers of the block as they are at the
    beginning of a round: such errors stay whatever is chosen, and they are
    many.

    Args:
        session (Session): The running quantization.
        images (Images): Those that are looked at, with targets of ``loss``.
        loss (GlobalLoss): Is differentiated.
        weigh (GradientWeighted): What becomes of ``g^2``.
        grid (BlockGrid): What is tried.
    """

    def __init__(
        self,
        session: Session,
        images: Images,
        loss: GlobalLoss,
        weigh: GradientWeighted,
        grid: BlockGrid,
    ) -> None:
        self.session = session
        self.images = images
        self.loss = loss
        self.weigh = weigh
        self.grid = grid

    def search(self, unit: Unit, turns: Sequence[list[Held]]) -> None:
        """Searches the quantizers of one block.

        Args:
            unit (Unit): The block.
            turns (Sequence[list[Held]]): Layer and tensor of each of its
                quantizers, those in one list that share it, in order.
        """
        session, cache = self.session, self.images.cache
        view = UnitView(session.model, session.graph, unit)
        samples = collect_float(self.images, [view], False)[0]
        reached = any(one.reached for one in samples.values())
        try:
            if any(all_gather_object(reached)):
                run = self.images.run
                weigh(
                    self.images, view, samples, run, [self.loss], [self.weigh]
                )
                _Block(self, view, samples).search(turns)
            else:
                session.notes.append(
                    f'{unit.name}: its grids stay as they are, no calibration '
                    'image reaches it (SearchScales)'
                )
        finally:
            for sample in samples.values():
                cache.drop(sample.entries())


class _Block:
    """One block on the images.

    Args:
        owner (BlockSearch): The search.
        view (UnitView): The block.
        samples (dict[int, Sample]): What it does on each image, weighed.
    """

    def __init__(
        self, owner: BlockSearch, view: UnitView, samples: dict[int, Sample]
    ) -> None:
        self.session = owner.session
        self.cache = owner.images.cache
        self.grid = owner.grid
        self.view = view
        self.samples = {j: s for j, s in samples.items() if s.reached}

    def search(self, turns: Sequence[list[Held]]) -> None:
        """Searches in turn, as often as there are rounds."""
        every = set(self.view.layers)
        done: set[str] = set()
        low_high = ends_of(self.session, self.view, self.samples, self.cache)
        records: dict[Held, SearchRecord] = {}
        for _ in range(self.grid.rounds):
            self._eliminate(every)
            for held in turns:
                done |= {n for n, _ in held if n in every}
                with quantizing(self.session.layers, done, done):
                    found = self._one(held, *low_high[held[0]])
                # another round leaves out other errors
                records.setdefault(held[0], found)
        self.session.records += records.values()

    def _errors(self, j: int) -> Iterator[Tensor]:
        """``w dz^2`` of each output on image j."""
        sample, fetch = self.samples[j], self.cache.fetch
        ours: list[Tensor] = []
        with torch.no_grad(), forward_context(sample.images):
            for i, levels in enumerate(sample.levels):
                ours += self.view(levels, fetch(sample.inputs[i]))
        targets, weights = fetch((sample.targets, sample.weights))
        for z, exact, w in zip(ours, targets, weights, strict=True):
            yield w * (z - exact) ** 2

    def _eliminate(self, layers: set[str]) -> None:
        """Finds the errors that are too small to be looked at."""
        self.positions: dict[int, list[Tensor]] = {}
        with quantizing(self.session.layers, layers, layers):
            for j in self.samples:
                errors = list(self._errors(j))
                flat = torch.cat([e.flatten() for e in errors])
                rank = int(self.grid.elimination * len(flat))
                if rank:
                    least = flat.kthvalue(rank).values
                    self.positions[j] = [e > least for e in errors]

    def _loss(self, j: int) -> Tensor:
        """Of one image, float64."""
        total = torch.zeros((), dtype=torch.float64)
        positions = self.positions.get(j)
        for i, error in enumerate(self._errors(j)):
            kept = error if positions is None else error * positions[i]
            total = total.to(kept.device) + kept.double().sum()
        return total

    def _one(self, held: list[Held], low: Tensor, high: Tensor) -> Any:
        """Gives one quantizer the best of its candidates."""
        name, tensor = held[0]
        quantizer = quantizer_of(self.session, held[0])
        kept = copy.deepcopy(quantizer.state_dict())
        found = self._candidates(quantizer, low, high)
        count = found[0].shape[1]
        losses = [self._losses()]
        levels = quantizer.num_levels()
        shape = (levels, len(low) // levels) if levels > 1 else (len(low),)
        for c in range(count):
            index = torch.full(shape, c, device=low.device)
            quantizer.adopt(found, index)
            losses.append(self._losses())
        sums = _summed(losses, list(self.samples))
        best = min(range(len(sums)), key=sums.__getitem__)
        if best:
            index = torch.full(shape, best - 1, device=low.device)
            quantizer.adopt(found, index)
        else:
            quantizer.load_state_dict(kept)
        layers = [n for n, _ in held]
        return SearchRecord(name, tensor, layers, sums[0], sums[best])

    def _losses(self) -> Tensor:
        """Of all images of this rank."""
        losses = [self._loss(j) for j in self.samples]
        return torch.stack(losses) if losses else torch.zeros(0).double()

    def _candidates(
        self, quantizer: BaseQuantizer, low: Tensor, high: Tensor
    ) -> tuple[Tensor, ...]:
        shares = shares_of(self.grid.fractions, self.grid.count)
        assert isinstance(quantizer, Searchable)
        return quantizer.candidates(low, high, shares.to(low.device))


def quantizer_of(session: Session, one: Held) -> BaseQuantizer:
    """The quantizer of a tensor of a layer."""
    name, tensor = one
    layer = session.layers[name]
    if tensor == 'weight':
        return layer.weight_quantizer
    return layer.act_quantizers[tensor]


def _summed(losses: list[Tensor], images: list[int]) -> list[float]:
    """Sums over the images of all ranks, in the order of these."""
    table = torch.stack(losses).tolist()
    mine = {j: [row[i] for row in table] for i, j in enumerate(images)}
    return [sum(row) for row in zip(*of_all_images(mine), strict=True)]
