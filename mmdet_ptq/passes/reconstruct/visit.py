# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One unit: what it sees is gathered, what it learns is kept or not."""

import dataclasses
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from mmengine.dist import all_gather_object

from ...calibration import (
    Images,
    Replay,
    Sample,
    Session,
    UnitView,
    collect,
    collect_float,
    own_quantizers,
    size_of,
)
from ...layers import quantizing
from ...losses import GlobalLoss, Loss
from ...records import UnitRecord
from ...registry import LEARNERS, build_from
from ...structures import Unit
from .fisher import weigh
from .pace import Pace
from .trainer import Trainer


class Visit:
    """Reconstructs one unit after the other.

    Args:
        settings (Reconstruct): The pass, for its numbers.
        session (Session): The running quantization.
        images (Images): The calibration images.
        units (list[Unit]): All units, in execution order.
        losses (list[Loss]): All losses.
        fisher (list[GlobalLoss]): Losses whose gradient weighs errors.
    """

    def __init__(
        self,
        settings: Any,
        session: Session,
        images: Images,
        units: list[Unit],
        losses: list[Loss],
        fisher: list[GlobalLoss],
    ) -> None:
        self.settings = settings
        self.session = session
        self.images = images
        self.units = units
        self.losses = losses
        self.fisher = fisher
        names = [unit.name for unit in units]
        self.pace = Pace(session, names, settings.iters)
        self.on_outputs = bool(fisher) or any(
            isinstance(one, GlobalLoss) for one in losses
        )

    def __call__(self, k: int, samples: dict[int, Sample] | None) -> None:
        """Reconstructs unit ``k``.

        Args:
            k (int): Number of the unit.
            samples (dict[int, Sample], optional): What it does on each
                image, if that was taken before.
        """
        start = time.perf_counter()
        self.pace.unit(k)
        with self._masks(k):
            record = self._visited(k, samples)
        if record is not None:
            seconds = round(time.perf_counter() - start, 2)
            record = dataclasses.replace(record, seconds=seconds)
            self.session.records.append(record)

    def _masks(self, k: int) -> AbstractContextManager[None]:
        """Masks are left out where neither a loss nor the unit needs them."""
        adapter = self.images.adapter
        whole = [one for one in self.losses if isinstance(one, GlobalLoss)]
        read = any(one.reads_masks for one in (*whole, *self.fisher))
        if read or any(map(adapter.of_masks, self.units[k].layers)):
            return nullcontext()
        return adapter.without_masks()

    def _visited(
        self, k: int, samples: dict[int, Sample] | None
    ) -> UnitRecord | None:
        """What became of the unit, None if no image reaches it."""
        unit = self.units[k]
        view = self.settings.view(self.session.model, self.session.graph, unit)
        replay = self._replay(view, k) if self.on_outputs else None
        if samples is None:
            samples = self._collect(view, replay, k)
        try:
            return self._kept(view, samples, replay, k)
        finally:
            for sample in samples.values():
                self.images.cache.drop(sample.entries())

    def _kept(
        self,
        view: UnitView,
        samples: dict[int, Sample],
        replay: Replay | None,
        k: int,
    ) -> UnitRecord | None:
        """What became of the unit, None if no image reaches it."""
        name = self.units[k].name
        reached = any(sample.reached for sample in samples.values())
        if not any(all_gather_object(reached)):
            self.session.notes.append(
                f'{name}: not reconstructed, no calibration image reaches it'
            )
            return None
        sizes = (size_of(s.entries()) for s in samples.values())
        self.images.cache.check_fits(
            self.settings.batch_size * max(sizes, default=0),
            f'one batch of {name}',
        )
        return self._learn(view, samples, replay, k)

    def _before(self, k: int) -> set[str]:
        """Layers that are quantized before unit ``k``."""
        if self.settings.input_distribution == 'float':
            return set()
        return {name for unit in self.units[:k] for name in unit.layers}

    def _only_before(self, k: int) -> AbstractContextManager[None]:
        """The layers before unit ``k`` quantized, the others float."""
        before = self._before(k)
        acts = before if self.settings.activations else set()
        return quantizing(self.session.layers, before, acts)

    def _replay(self, view: UnitView, k: int) -> Replay | None:
        """What the unit cannot change."""
        replay = None
        # an image may not call the unit, a rank may have no image
        for j in self.images.mine:
            with self._only_before(k):
                replay = Replay(
                    self.session.model, view, lambda j=j: self.images.run(j)
                )
            if replay.reached:
                break
        return replay

    def _collect(
        self, view: UnitView, replay: Replay | None, k: int
    ) -> dict[int, Sample]:
        """What the unit does on each of this rank's images."""
        mixed = self.settings.drop_prob > 0
        float_inputs = self.settings.input_distribution == 'float'
        if float_inputs and replay is None:
            return collect_float(self.images, [view], mixed)[0]
        return collect(
            self.images, view, replay, mixed, lambda: self._only_before(k)
        )

    def _trainer(
        self,
        view: UnitView,
        samples: dict[int, Sample],
        replay: Replay | None,
        k: int,
    ) -> Trainer:
        return self.settings.trainer(
            self.settings,
            self.session,
            self.images,
            view,
            samples,
            replay,
            self.losses,
            partial(self.pace.step, k),
        )

    def _learn(
        self,
        view: UnitView,
        samples: dict[int, Sample],
        replay: Replay | None,
        k: int,
    ) -> UnitRecord:
        """Corrects, weighs and fits."""
        settings, session, images = self.settings, self.session, self.images
        trainer = self._trainer(view, samples, replay, k)
        corrected = None
        if settings.correction:
            train, _ = trainer.split()
            mine = {j: samples[j] for j in train if j in samples}
            corrected = settings.correction(session, images.cache, view, mine)
        weights = self._before(k) | set(self.units[k].layers)
        acts = weights if settings.activations else set()
        with quantizing(session.layers, weights, acts):
            if self.fisher:
                weigh(
                    images,
                    view,
                    samples,
                    trainer.replayed,
                    self.fisher,
                    self.losses,
                )
            learners = [
                build_from(LEARNERS, cfg, 'Reconstruct')
                for cfg in settings.learn
            ]
            own = own_quantizers(session, self.units, k)
            record = trainer.fit(learners, own, k)
        return dataclasses.replace(
            record,
            correction=corrected,
            learned=[cfg['type'] for cfg in settings.learn],
        )
