# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that searches scales for what they do to outputs."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size

from ...calibration import Images, Session, frozen
from ...calibration.rows import DEFORMABLE
from ...checks import below_one, number, one_of, whole
from ...detectors import adapter_for, why_no_outputs
from ...errors import QuantConfigError
from ...layers import InputLayerNorm
from ...losses import GradientWeighted, build_loss
from ...quantizers import BaseQuantizer, Searchable
from ...registry import PASSES
from ..base import BasePass
from ..reconstruct.progress import export, resume
from .block import BlockGrid
from .blocks import search_blocks
from .component import Component, ComponentSearch, components
from .gather import Samples
from .objectives import Objective, Pearson, Squares
from .operands import Sampled, weighed
from .search import Grid
from .share import packed, take

OBJECTIVES = ('output', 'hessian', 'pearson', 'tensor', 'block')
CANDIDATES = ('progressive', 'ranges')
TENSORS = ('all', 'weights', 'activations')
FISHER = dict(type='FisherLoss', damping=0.8)
#: layers whose outputs are no products of sampled rows
UNSAMPLED = {
    'deformable convolutions': DEFORMABLE,
    'layer norms': InputLayerNorm,
}
#: a resume file is written after so many components
SAVED = 8
#: arguments that do not always act, and with what they do
ACTS: dict[str, tuple[str, Sequence[str]]] = dict(
    keep=('candidates', ('progressive',)),
    each=('candidates', ('progressive',)),
    steps=('candidates', ('progressive',)),
    rows=('objective', OBJECTIVES[:-1]),
    loss=('objective', ('hessian', 'block')),
    ranking=('objective', ('pearson',)),
    elimination=('objective', ('block',)),
    images=('objective', ('block',)),
    first=('tensors', ('all',)),
)


@PASSES.register_module()
class SearchScales(BasePass):
    """Searches the grid of every weight and input, layer by layer.

    Samples of the inputs of all layers are taken once, in the float
    detector; then no more forwards are needed. Of each layer, candidates for
    the grid of its weight are tried with its quantized input, candidates
    for the grid of its input with its quantized weight, and both operands of
    a product in turn. What is there before is kept unless something is
    better on the samples. Layers that share a quantizer are searched
    together; ranks share the layers. A product behind ``QuantizeNumerator``
    or ``IntegerSoftmax`` counts as it is before its rows are scaled back.

    PTQ4ViT (Yuan et al., 2022) is ``objective='hessian'``,
    ``candidates='ranges'``, ``count=100``, ``rounds=3``; AdaLog (Wu et al.,
    2024) is ``keep=16``, ``each=8``, ``steps=5``, ``rounds=3``; PTQ for vision
    transformers (Liu et al., 2021) is ``objective='pearson'``,
    ``candidates='ranges'``, ``fractions=(0.5, 1.2)``, ``rounds=3``.

    APQ-ViT (Ding et al., 2022) is ``objective='block'``,
    ``candidates='ranges'``, ``rounds=3``. Blocks are run on whole images with
    each candidate, which takes much longer: ``count=20`` is a good number.
    All rows of a quantizer take the same share of their ranges.

    Args:
        objective (str): What is to be least. ``'output'``: the squared
            error of the layer's output. ``'hessian'``: the same, weighed by
            squared gradients at each sampled position. ``'pearson'``: one
            minus the correlation of the output, plus what changes the order
            of attention logits. ``'tensor'``: the squared error of the
            quantized tensor itself. ``'block'``: the squared error of what
            the block gives that holds the layer, weighed as by
            ``'hessian'``; see below. Defaults to ``'output'``.
        candidates (str): ``'progressive'``: made anew around the best few,
            where the quantizer can do that. ``'ranges'``: shares of the
            range of the samples, or what the quantizer has in their place.
            Defaults to ``'progressive'``.
        tensors (str): ``'all'``, ``'weights'`` or ``'activations'``.
            Defaults to ``'all'``.
        rows (int): About how many output positions of a layer are sampled,
            the same number of each image and pyramid level. They take
            ``4 rows N`` bytes for a layer with N weights an output, in the
            cache. Defaults to 2048.
        rounds (int): How often weights and inputs have their turn. Defaults
            to 1.
        count (int): Candidates to begin with. Defaults to 128.
        keep (int): How many are refined, by ``'progressive'``. Defaults to
            4.
        each (int): How many are tried around each of these. Defaults to 4.
        steps (int): How often. Defaults to 3.
        fractions (tuple): From which share of the range on, and below
            which, shares are tried by ``'ranges'``, and of quantizers that
            are not refined. Defaults to (0.01, 1.2).
        first (str): Which have the first turn, ``'weights'`` or
            ``'activations'``. Defaults to ``'weights'``.
        loss (dict): Loss whose weights ``'hessian'`` and ``'block'`` take,
            at the outputs of the detector as it is quantized before this
            pass: where nothing is quantized, all gradients are 0. With
            ``damping=0.8``, a fifth of a weight is the squared gradient over
            its mean, and the rest is 1: from a few images the gradients
            alone rest on few positions. Defaults to
            ``dict(type='FisherLoss', damping=0.8)``.
        ranking (float): Factor of the ranking loss of ``'pearson'``.
            Defaults to 0.1.
        elimination (float): Of ``'block'``: share of the errors, the
            smallest, that are left out; from 0, below 1. Defaults to 0.5.
        images (int): Of ``'block'``: how many images the blocks are run on,
            of each rank. Defaults to 8.

    Raises:
        ValueError: If an argument is not among the allowed values, or does
            not act beside the others.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'ranges'})
    gives: ClassVar[frozenset[str]] = frozenset({'chosen'})
    refuses: ClassVar[frozenset[str]] = frozenset({'corrected', 'learned'})

    def __init__(
        self,
        objective: str = 'output',
        candidates: str = 'progressive',
        tensors: str = 'all',
        rows: int = 2048,
        rounds: int = 1,
        count: int = 128,
        keep: int = 4,
        each: int = 4,
        steps: int = 3,
        fractions: tuple[float, float] = (0.01, 1.2),
        first: str = 'weights',
        loss: dict = FISHER,
        ranking: float = 0.1,
        elimination: float = 0.5,
        images: int = 8,
    ) -> None:
        self.objective = one_of('objective', objective, OBJECTIVES)
        self.candidates = one_of('candidates', candidates, CANDIDATES)
        self.tensors = one_of('tensors', tensors, TENSORS)
        self.rows = whole('rows', rows, 1)
        self.rounds = whole('rounds', rounds, 1)
        self.count = whole('count', count, 16)
        self.keep = whole('keep', keep, 1)
        self.each = whole('each', each, 2)
        self.steps = whole('steps', steps)
        pair = list(fractions) if isinstance(fractions, Sequence) else []
        pair = [number('fractions', f, above=True) for f in pair]
        if len(pair) != 2 or pair[0] >= pair[1]:
            raise ValueError(
                'fractions must be a smaller and a larger share, got '
                f'{fractions!r}'
            )
        self.fractions = tuple(pair)
        self.first = one_of('first', first, TENSORS[1:])
        self.loss = loss
        self.ranking = number('ranking', ranking)
        self.elimination = below_one('elimination', elimination)
        self.images = whole('images', images, 1)
        if objective == 'block' and candidates != 'ranges':
            raise ValueError(
                f"candidates must be 'ranges' for objective='block', got "
                f'{candidates!r}: the rows of a quantizer are not told apart'
            )
        self.refuse_idle(ACTS)
        build_loss(self.loss, 'SearchScales.loss', GradientWeighted)

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`."""
        for name, tensor, quantizer in self._wanted(session):
            if not isinstance(quantizer, Searchable):
                kind = type(quantizer).__name__
                raise QuantConfigError(
                    f'SearchScales: {name}: a {kind} ({tensor}) cannot be '
                    "searched; allowed are quantizers that are 'Searchable'. "
                    "Use tensors='weights' or tensors='activations', or "
                    'another quantizer'
                )
        why = why_no_outputs(session.model, session.graph)
        if why and self.objective in ('hessian', 'block'):
            raise QuantConfigError(
                f'SearchScales: objective={self.objective!r} differentiates '
                f"the detector's outputs, but {why}; use objective='output'"
            )

    def _wanted(
        self, session: Session
    ) -> list[tuple[str, str, BaseQuantizer]]:
        """Layer, tensor and quantizer of what is to be searched."""
        found = []
        for name, layer in session.layers.items():
            weight = layer.weight_quantizer
            if self.tensors != 'activations' and weight is not None:
                found.append((name, 'weight', weight))
            if self.tensors != 'weights':
                acts = layer.act_quantizers.items()
                found += [(name, port, q) for port, q in acts]
        return found

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        if self.objective == 'block':
            wanted = [one[:2] for one in self._wanted(session)]
            grid = BlockGrid(
                self.count, self.rounds, self.fractions, self.elimination
            )
            if self.first == 'activations':
                wanted.sort(key=lambda one: one[1] == 'weight')
            search_blocks(session, wanted, grid, self.loss, self.images)
            return
        parts = self._parts(session)
        done = resume(session)
        with (
            session.resumable(partial(export, session)),
            session.cache() as cache,
            frozen(session.model),
            session.stage('scale search'),
        ):
            samples = self._samples(session, cache, parts[done:])
            while done < len(parts):
                wave = parts[done : done + get_world_size()]
                session.progress('scales', wave[0].layers[0], done, len(parts))
                self._wave(session, samples, wave)
                done += len(wave)
                session.state['units'] = done
                # gradients are those before the pass, and are not kept: it is
                # resumed from its beginning
                if self.objective != 'hessian' and done % SAVED < len(wave):
                    session.save()

    def _parts(self, session: Session) -> list[Component]:
        """What is searched, in execution order."""
        layers = session.layers
        names = [n for n in session.graph.layers if n in layers]
        wanted = {(name, tensor) for name, tensor, _ in self._wanted(session)}
        strange = {
            name: kind
            for kind, classes in UNSAMPLED.items()
            for name in names
            if isinstance(layers[name], classes)
        }
        groups = [
            group
            for group in session.plan.groups
            if group[0] in wanted and not any(n in strange for n, _ in group)
        ]
        weights = [
            n
            for n in names
            if (n, 'weight') in wanted
            and n not in strange
            and not layers[n].tied
        ]
        found = {n for n, _ in wanted}
        for kind in UNSAMPLED:
            left = [n for n in strange if strange[n] == kind and n in found]
            if left:
                session.notes.append(
                    f'SearchScales: {kind} keep their grids: '
                    + ', '.join(sorted(left))
                )
        return components(names, groups, weights)

    def _samples(
        self, session: Session, cache: Any, parts: list[Component]
    ) -> Samples:
        weighted = self.objective == 'hessian'
        weigh = build_loss(self.loss, 'SearchScales.loss', GradientWeighted)
        losses = [weigh.build_of('SearchScales.loss')] if weighted else []
        adapter = adapter_for(session.model, session.graph, weighted)
        images = Images(session, cache, adapter, losses)
        names = {n for part in parts for n in part.layers}
        samples = Samples(session, images, names, self.rows)
        samples.take()
        if weighted:
            samples.take_slopes(losses[0])
        return samples

    def _objective(self) -> Objective:
        if self.objective == 'pearson':
            return Pearson(self.ranking)
        return Squares(self.objective != 'tensor', self.objective == 'hessian')

    def _wave(
        self, session: Session, samples: Samples, wave: list[Component]
    ) -> None:
        """One component on each rank."""
        mine: dict[str, Any] = {}
        for i, part in enumerate(wave):
            # all ranks give what they have of it
            data = {n: samples.of(n) for n in part.layers}
            if i == get_rank():
                mine = self._search(session, part, data)
        for part, found in zip(wave, all_gather_object(mine), strict=False):
            take(session, part, found)

    def _search(
        self,
        session: Session,
        part: Component,
        data: dict[str, list[Sampled]],
    ) -> dict[str, Any]:
        """Searches a component; the result is plain, for other ranks."""
        objective = self._objective()
        if objective.weighted:
            weigh = build_loss(self.loss, '', GradientWeighted)
            data = {n: weighed(some, weigh) for n, some in data.items()}
        grid = Grid(
            self.candidates == 'progressive',
            self.count,
            self.keep,
            self.each,
            self.steps,
            self.fractions,
        )
        layers = session.layers
        one = ComponentSearch(layers, session.graph, data, objective, grid)
        records = one.run(part, self.rounds, self.first == 'weights')
        return packed(session, part, records, one.notes)
