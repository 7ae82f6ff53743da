# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that adjusts a quantized detector, unit by unit."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from ...calibration import (
    Images,
    Sample,
    Session,
    UnitView,
    collect_float,
    frozen,
)
from ...checks import below_one, number, one_of, whole
from ...detectors import adapter_for, why_no_outputs
from ...errors import QuantConfigError
from ...losses import GlobalLoss, GradientWeighted, Loss, build_loss
from ...quantizers import BaseQuantizer
from ...registry import LEARNERS, PASSES, build_from
from ...structures import Unit
from ..base import BasePass
from .correction import DistributionCorrection
from .learners.base import with_weights
from .progress import export, resume
from .settings import check_settings
from .trainer import Trainer
from .visit import Visit

UNITS = ('block', 'layer')
ORDERS = ('sequential', 'parallel')
INPUTS = ('quantized', 'float')
LOSSES = [dict(type='L2Loss')]


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
            ``DistributionCorrection``. Defaults to None: no correction.
        autocast (str, optional): ``'bfloat16'``: in steps, layers after the
            unit, which are float anyway, compute in it, by PyTorch's
            autocast. The unit itself, and the losses by which it is kept,
            stay float32. Faster on a GPU. Needs a loss on the detector's
            outputs: without one nothing after the unit is run. Defaults to
            None: all is float32.
        activations (bool): Whether activations are quantized meanwhile.
        holdout (float): Share of the images that are held out, at least
            one if there are two.
        revert (bool): Whether a unit that got worse is put back.

    Attributes:
        trainer (type[Trainer]): What fits a unit; a subclass of the pass
            may have another.
        view (type[UnitView]): What watches a unit and calls it alone.
        visit (type[Visit]): What takes one unit after the other.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'ranges'})
    gives: ClassVar[frozenset[str]] = frozenset({'learned'})
    trainer: ClassVar[type[Trainer]] = Trainer
    view: ClassVar[type[UnitView]] = UnitView
    visit: ClassVar[type[Visit]] = Visit

    def __init__(
        self,
        learn: list[dict],
        losses: list[dict] = LOSSES,
        unit: str = 'block',
        input_distribution: str = 'quantized',
        order: str = 'sequential',
        iters: int = 2000,
        batch_size: int = 2,
        drop_prob: float = 0.0,
        separate_global: bool = False,
        global_every: int = 1,
        distribution_correction: dict | None = None,
        autocast: str | None = None,
        activations: bool = True,
        holdout: float = 0.125,
        revert: bool = True,
    ) -> None:
        self.unit = one_of('unit', unit, UNITS)
        self.order = one_of('order', order, ORDERS)
        self.input_distribution = one_of(
            'input_distribution', input_distribution, INPUTS
        )
        self.iters = whole('iters', iters)
        self.batch_size = whole('batch_size', batch_size, 1)
        self.global_every = whole('global_every', global_every, 1)
        self.drop_prob = number('drop_prob', drop_prob, 0, 1)
        self.holdout = below_one('holdout', holdout)
        self.learn = list(learn)
        self.losses = list(losses)
        self.separate_global = separate_global
        if autocast is not None:
            one_of('autocast', autocast, ('bfloat16',))
        self.autocast = autocast
        self.activations = activations
        self.revert = revert
        self.correction = None
        if distribution_correction is not None:
            self.correction = DistributionCorrection.of(
                distribution_correction
            )
        check_settings(self)

    def check(self, earlier: Sequence[BasePass]) -> None:
        """See :meth:`BasePass.check`; a correction reads stored norms."""
        super().check(earlier)
        scaling = [p for p in earlier if 'equalized' in p.gives]
        if self.correction and scaling:
            raise QuantConfigError(
                'Reconstruct.distribution_correction: it compares maps with '
                'what batch norms have stored, and '
                f'{type(scaling[0]).__name__} has scaled the maps; leave one '
                'of them out (equalize=False, scale_inputs=False)'
            )

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`; losses need outputs to compare."""
        if self.iters == 0:
            return
        for name, layer in session.layers.items():
            for one in with_weights({name: layer}):
                self.check_weight(name, type(one.weight_quantizer))
        why = why_no_outputs(session.model, session.graph)
        if not why:
            return
        losses, fisher = self._built_losses()
        for loss in (*losses, *fisher):
            if isinstance(loss, GlobalLoss):
                raise QuantConfigError(
                    f'Reconstruct.losses: {type(loss).__name__} compares the '
                    f"detector's outputs, but {why}; register an adapter "
                    '(see mmdet_ptq.detectors.Adapter), or use losses on the '
                    "units' outputs alone, e.g. dict(type='L2Loss')"
                )
        session.notes.append(f'Reconstruct: units see predictions, as {why}')

    def check_weight(self, name: str, kind: type[BaseQuantizer]) -> None:
        """Refuses a weight that a learner cannot learn.

        Args:
            name (str): Name of the layer.
            kind (type): Class of the quantizer that its weight will have.

        Raises:
            QuantConfigError: Says what to do.
        """
        if self.iters:
            for cfg in self.learn:
                learner = build_from(LEARNERS, cfg, 'Reconstruct.learn')
                learner.check_weight(name, kind)

    def _built_losses(self) -> tuple[list[Loss], list[GlobalLoss]]:
        """All losses, and those whose gradient weighs errors."""
        losses = [build_loss(cfg, 'Reconstruct') for cfg in self.losses]
        fisher = [
            loss.build_of('Reconstruct')
            for loss in losses
            if isinstance(loss, GradientWeighted)
        ]
        return losses, fisher

    def run(self, session: Session) -> None:
        """Visits every unit; can be resumed after each."""
        if self.iters == 0:
            return
        units = self.units(session)
        done = resume(session)
        losses, fisher = self._built_losses()
        on_outputs = [one for one in losses if isinstance(one, GlobalLoss)]
        with (
            session.resumable(partial(export, session)),
            session.cache() as cache,
            frozen(session.model),
            session.stage('reconstruction'),
        ):
            adapter = adapter_for(
                session.model, session.graph, bool(on_outputs or fisher)
            )
            images = Images(session, cache, adapter, [*on_outputs, *fisher])
            visit = self.visit(self, session, images, units, losses, fisher)
            early = self._early(session, images, units[done:])
            for k, unit in enumerate(units[done:], done):
                visit(k, early.pop(unit.name, None))
                session.state['units'] = k + 1
                session.save()

    def units(self, session: Session) -> list[Unit]:
        """Units that have something to learn, in execution order.

        Args:
            session (Session): The running quantization.

        Returns:
            list[Unit]: Blocks, or single layers if ``unit`` says so.
        """
        units = session.graph.units
        if self.unit == 'layer':
            units = [Unit(n, (n,)) for n in session.graph.layers]
        plans = session.plan.layers
        return [
            unit
            for unit in units
            if any(not plans[n].why_float for n in unit.layers)
        ]

    def _early(
        self, session: Session, images: Images, units: list[Unit]
    ) -> dict[str, dict[int, Sample]]:
        """Samples of units that are taken before any is reconstructed."""
        if self.order == 'sequential':
            return {}
        views = [self.view(session.model, session.graph, u) for u in units]
        found = collect_float(images, views, self.drop_prob > 0)
        return {v.name: one for v, one in zip(views, found, strict=True)}
