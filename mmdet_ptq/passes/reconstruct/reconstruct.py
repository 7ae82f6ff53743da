# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that adjusts a quantized detector, unit by unit."""

import dataclasses
import time
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list

from ...calibration import (
    Images,
    Replay,
    Sample,
    Session,
    UnitView,
    collect,
    collect_float,
    frozen,
    own_quantizers,
    size_of,
)
from ...detectors import find_adapter
from ...layers import named_tensors, quantizing, restore_tensors
from ...losses import GlobalLoss, GradientWeighted, LocalLoss, build_loss
from ...records import record_of
from ...registry import LEARNERS, PASSES, build_from
from ...structures import Unit
from ..base import BasePass
from .correction import DistributionCorrection
from .fisher import weigh
from .trainer import Trainer

UNITS = ('block', 'layer')
ORDERS = ('sequential', 'parallel')
INPUTS = ('quantized', 'float')


@PASSES.register_module()
class Reconstruct(BasePass):
    """Learns rounding, steps and codebooks so that outputs stay float-like.

    Units are visited in execution order. For each, inputs behind the
    already quantized layers and outputs of the float model are cached, the
    learners are optimised by Adam against the losses, hardened, and kept
    only if the loss on held-out images fell.

    Args:
        learn (list[dict]): Learners, e.g. ``[dict(type='AdaRound'),
            dict(type='LearnedSteps')]``.
        losses (list[dict]): Losses to add up. Defaults to
            ``[dict(type='L2Loss')]``.
        unit (str): ``'block'``: residual and transformer blocks, single
            layers elsewhere; ``'layer'``: single layers.
        input_distribution (str): ``'quantized'``: a unit's inputs come
            from the quantized layers before it; ``'float'``: from the float
            model.
        order (str): ``'sequential'``: what a unit sees is taken when its
            turn comes; ``'parallel'``: of all units in one float forward of
            each image (AdaQuant's default). That needs
            ``input_distribution='float'`` and losses on the units' outputs
            without gradients; the result is the same to the bit. It takes
            fewer forwards and room for all units, beyond
            ``calibration.cache`` on disk.
        iters (int): Steps for each unit; 0 changes nothing.
        batch_size (int): Images in a step, on each rank.
        drop_prob (float): QDrop's probability: share of the elements of a
            unit's inputs, and of its activations, that are left float in a
            step. Defaults to 0.
        separate_global (bool): Losses on the detector's outputs see the
            quantized input, not the mixture (PD-Quant). Defaults to False.
        global_every (int): Losses on the detector's outputs count for one
            in n images of the batches, n times as much; for the others
            the unit runs alone. Defaults to 1.
        distribution_correction (dict, optional): Steps ``iters`` (500),
            rate ``lr`` (1e-3) and ``lambda_c`` (0.02) of PD-Quant's
            correction of the float inputs of units with batch norms;
            ``dict()`` takes these. Needs ``drop_prob`` above 0; see
            ``DistributionCorrection``. Defaults to None.
        activations (bool): Whether activations are quantized meanwhile.
        holdout (float): Share of the images that are held out, at least
            one if there are two.
        revert (bool): Whether a unit that got worse is put back.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(
        self,
        learn: list[dict],
        losses: list[dict] | None = None,
        unit: str = 'block',
        input_distribution: str = 'quantized',
        order: str = 'sequential',
        iters: int = 2000,
        batch_size: int = 2,
        drop_prob: float = 0.0,
        separate_global: bool = False,
        global_every: int = 1,
        distribution_correction: dict | None = None,
        activations: bool = True,
        holdout: float = 0.125,
        revert: bool = True,
    ) -> None:
        _check(unit in UNITS, f'unit must be one of {UNITS}, got {unit!r}')
        _check(
            order in ORDERS, f'order must be one of {ORDERS}, got {order!r}'
        )
        _check(
            input_distribution in INPUTS,
            f'input_distribution must be one of {INPUTS}, got '
            f'{input_distribution!r}',
        )
        _check(type(iters) is int and iters >= 0, f'iters: {iters!r} < 0')
        _check(
            type(batch_size) is int and batch_size >= 1,
            f'batch_size must be a whole number from 1, got {batch_size!r}',
        )
        _check(
            0 <= drop_prob <= 1, f'drop_prob must be 0 to 1, got {drop_prob!r}'
        )
        _check(
            0 <= holdout < 1, f'holdout must be 0 to below 1, got {holdout!r}'
        )
        _check(
            type(global_every) is int and global_every >= 1,
            f'global_every must be a whole number from 1, got '
            f'{global_every!r}',
        )
        self.learn = list(learn)
        self.losses = list(losses or [dict(type='L2Loss')])
        self.unit = unit
        self.quantized_inputs = input_distribution == 'quantized'
        self.order = order
        self.iters = iters
        self.batch_size = batch_size
        self.drop_prob = drop_prob
        self.separate_global = separate_global
        self.global_every = global_every
        self.activations = activations
        self.holdout = holdout
        self.revert = revert
        self.correction = None
        if distribution_correction is not None:
            _check(
                drop_prob > 0,
                'distribution_correction needs drop_prob above 0: only the '
                'float part of the mixed inputs is corrected',
            )
            self.correction = DistributionCorrection.of(
                distribution_correction
            )
        built = [
            build_from(LEARNERS, cfg, f'Reconstruct.learn[{i}]')
            for i, cfg in enumerate(self.learn)
        ]
        _check(bool(built), 'learn is empty: nothing would be learned')
        _check(
            sum(one.weights for one in built) <= 1,
            'learn has two learners of weights; use one',
        )
        self._check_losses()

    def _check_losses(self) -> None:
        """Refuses losses that the other arguments speak against."""
        losses = [
            build_loss(cfg, f'Reconstruct.losses[{i}]')
            for i, cfg in enumerate(self.losses)
        ]
        weighted = [
            (i, loss)
            for i, loss in enumerate(losses)
            if isinstance(loss, GradientWeighted)
        ]
        for i, loss in weighted:
            loss.build_of(f'Reconstruct.losses[{i}]')
        _check(
            len(weighted) <= 1,
            'losses has two that take weights from a gradient; use one',
        )
        _check(
            self.global_every == 1
            or any(isinstance(one, LocalLoss) for one in losses),
            f'global_every={self.global_every} leaves images without a loss: '
            "add one on the units' outputs, e.g. dict(type='L2Loss')",
        )
        early = not weighted and not any(
            isinstance(one, GlobalLoss) for one in losses
        )
        _check(
            self.order == 'sequential'
            or (not self.quantized_inputs and early),
            "order='parallel' needs input_distribution='float', and losses on "
            "the units' outputs that need no gradient, e.g. "
            "dict(type='L2Loss')",
        )

    def run(self, session: Session) -> None:
        """Visits every unit; can be resumed after each."""
        if self.iters == 0:
            return
        units = self._units(session)
        done = self._resume(session)
        losses = [build_loss(cfg, 'Reconstruct') for cfg in self.losses]
        fisher = [
            loss.build_of('Reconstruct')
            for loss in losses
            if isinstance(loss, GradientWeighted)
        ]
        whole = [one for one in losses if isinstance(one, GlobalLoss)]
        with (
            session.resumable(lambda: self._export(session)),
            session.cache() as cache,
            frozen(session.model),
            session.stage('reconstruction'),
        ):
            adapter = find_adapter(session.model, mask=True)
            images = Images(session, cache, adapter, [*whole, *fisher])
            early = self._early(session, images, units[done:])
            for k, unit in enumerate(units):
                session.progress('reconstruction', unit.name, k, len(units))
                if k >= done:
                    samples = early.pop(unit.name, None)
                    self._one(
                        session, images, units, k, samples, losses, fisher
                    )
                    session.state['units'] = k + 1
                    session.save()

    def _early(
        self, session: Session, images: Images, units: list[Unit]
    ) -> dict[str, dict[int, Sample]]:
        """Samples of units that are taken before any is reconstructed."""
        if self.order == 'sequential':
            return {}
        views = [UnitView(session.model, session.graph, u) for u in units]
        found = collect_float(images, views, self.drop_prob > 0)
        return {v.name: one for v, one in zip(views, found, strict=True)}

    def _units(self, session: Session) -> list[Unit]:
        """Units that have something to learn, in execution order."""
        units = session.graph.units
        if self.unit == 'layer':
            units = [Unit(n, (n,)) for n in session.graph.layers]
        plans = session.plan.layers
        return [
            unit
            for unit in units
            if any(not plans[n].why_float for n in unit.layers)
        ]

    def _export(self, session: Session) -> dict:
        return dict(
            units=session.state.get('units', 0),
            tensors={
                n: t.clone() for n, t in named_tensors(session.model).items()
            },
            records=[r.to_dict() for r in session.records],
            notes=list(session.notes),
        )

    def _resume(self, session: Session) -> int:
        done = session.state.get('units', 0)
        ranks = all_gather_object(done)
        if len(set(ranks)) > 1:
            # a kill came between the saves of two ranks; after a unit all
            # hold the same, so those behind go on from what the first has
            first = [session.state]
            broadcast_object_list(first, src=ranks.index(max(ranks)))
            session.state.update(first[0])
            done = max(ranks)
        if done:
            restore_tensors(session.model, session.state.pop('tensors'))
            session.records[:] = map(record_of, session.state.pop('records'))
            session.notes[:] = session.state.pop('notes')
        return done

    def _one(
        self,
        session: Session,
        images: Images,
        units: list[Unit],
        k: int,
        samples: dict[int, Sample] | None,
        losses: list[Any],
        fisher: list[Any],
    ) -> None:
        """Reconstructs unit ``k``."""
        start = time.perf_counter()
        unit, cache = units[k], images.cache
        before = {n for u in units[:k] for n in u.layers}
        if not self.quantized_inputs:
            before = set()
        upto = before | set(unit.layers)
        acts = upto if self.activations else set()

        def prefix_only() -> Any:
            return quantizing(
                session.layers, before, before if self.activations else set()
            )

        view = UnitView(session.model, session.graph, unit)
        acts_of_unit = own_quantizers(session, units, k)
        prefix = None
        if fisher or any(isinstance(one, GlobalLoss) for one in losses):
            # an image may not call the unit, a rank may have no image
            for j in images.mine:
                with prefix_only():
                    prefix = Replay(
                        session.model, view, lambda j=j: images.run(j)
                    )
                if prefix.reached:
                    break
        mixed = self.drop_prob > 0
        if samples is None and (self.quantized_inputs or prefix is not None):
            samples = collect(images, view, prefix, mixed, prefix_only)
        elif samples is None:
            samples = collect_float(images, [view], mixed)[0]
        called = any(sample.levels for sample in samples.values())
        if not any(all_gather_object(called)):
            session.notes.append(
                f'{unit.name}: not reconstructed, no loss reaches it'
            )
            return
        cache.check_fits(
            self.batch_size
            * max((size_of(s.entries()) for s in samples.values()), default=0),
            f'one batch of {unit.name}',
        )
        trainer = Trainer(self, session, images, view, samples, prefix, losses)
        corrected = None
        if self.correction:
            train, _ = trainer.split()
            mine = {j: samples[j] for j in train if j in samples}
            corrected = self.correction(session, cache, view, mine)
        with quantizing(session.layers, upto, acts):
            if fisher:
                weigh(images, view, samples, trainer.replayed, fisher, losses)
            learners = [
                build_from(LEARNERS, cfg, 'Reconstruct') for cfg in self.learn
            ]
            record = trainer.fit(learners, acts_of_unit, k)
        for sample in samples.values():
            cache.drop(sample.entries())
        session.records.append(
            dataclasses.replace(
                record,
                correction=corrected,
                learned=[cfg['type'] for cfg in self.learn],
                seconds=round(time.perf_counter() - start, 2),
            )
        )


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)
