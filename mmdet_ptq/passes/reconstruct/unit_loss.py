# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The losses of one unit, image by image."""

from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from itertools import chain
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from torch import Tensor

from ...calibration import Images, Replay, Sample, Session, UnitView, mix
from ...context import forward_context
from ...layers import in_bfloat16
from ...losses import GlobalLoss, LocalLoss


class UnitLoss:
    """What a unit loses on an image, and on several.

    Args:
        settings (Reconstruct): The pass, for its numbers.
        session (Session): The running quantization.
        images (Images): The calibration images.
        view (UnitView): The unit.
        samples (dict[int, Sample]): This rank's samples.
        replay (Replay, optional): For losses on the detector's outputs.
        losses (list): All losses.
        on_step (Callable): Told the number of each step that begins.

    Attributes:
        reached (list[int]): Numbers of the images, of all ranks, on which
            the unit gives anything. Nothing can be learned from the others,
            nor judged by them.
    """

    def __init__(
        self,
        settings: Any,
        session: Session,
        images: Images,
        view: UnitView,
        samples: dict[int, Sample],
        replay: Replay | None,
        losses: list[Any],
        on_step: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.on_step = on_step
        self.settings = settings
        self.session = session
        self.images = images
        self.view = view
        self.samples = samples
        self.replay = replay
        mine = [j for j, sample in samples.items() if sample.reached]
        self.reached = sorted(chain(*all_gather_object(mine)))
        self.local = [one for one in losses if isinstance(one, LocalLoss)]
        self.whole = [one for one in losses if isinstance(one, GlobalLoss)]

    def loss(
        self,
        j: int,
        drop_prob: float = 0.0,
        generator: torch.Generator | None = None,
        factor: int = 1,
    ) -> Tensor:
        """Sum of all losses on image ``j``, without penalties.

        Args:
            j (int): Number of the image.
            drop_prob (float): Share of the elements that are left float.
            generator (torch.Generator, optional): Draws which.
            factor (int): Of the losses on the detector's outputs; at 0
                nothing after the unit is run.

        Returns:
            Tensor: A scalar.
        """
        fetch = self.images.cache.fetch
        sample = self.samples[j]
        weights = fetch(sample.weights)
        total = torch.zeros((), device=self.session.device)
        whole = self.whole if factor else []
        together = whole and not self.settings.separate_global
        if whole:
            seen: list[Tensor] = []
            outputs = self.replayed(
                j, drop_prob if together else 0.0, generator, seen
            )
            targets = self.images.targets(j)
            for one, target in zip(whole, targets, strict=False):
                total = total + factor * one(outputs, target)
        if not together and self.local:
            seen = []
            with (
                self._dropping(drop_prob, generator),
                forward_context(sample.images),
            ):
                for i, levels in enumerate(sample.levels):
                    inputs = self.inputs(sample, i, drop_prob, generator)
                    seen += self.view(levels, inputs)
        # an image may not call the unit
        for one in self.local if sample.levels else ():
            total = total + one(seen, fetch(sample.targets), weights)
        return total

    def entries(self, j: int, drop_prob: float, factor: int) -> list[Any]:
        """What :meth:`loss` fetches from the cache; arguments are its own."""
        sample = self.samples[j]
        whole = bool(self.whole and factor)
        apart = self.settings.separate_global
        found = [sample.weights, sample.targets if self.local else None]
        if whole:
            found += [sample.replay, self.images.of(j)]
        # a replayed forward makes its own inputs, unless they are mixed
        if not whole or drop_prob or apart:
            found.append(sample.inputs)
        if drop_prob:
            found.append(sample.exact)
        return found

    def replayed(
        self,
        j: int,
        drop_prob: float = 0.0,
        generator: torch.Generator | None = None,
        seen: list[Tensor] | None = None,
    ) -> Any:
        """Outputs of the detector on image ``j``, from the unit on.

        Args:
            j (int): Number of the image.
            drop_prob (float): Share of the elements that are left float.
            generator (torch.Generator, optional): Draws which.
            seen (list[Tensor], optional): Takes the outputs of the unit.

        Returns:
            Any: Raw outputs, as the adapter gives them.
        """
        sample = self.samples[j]

        def after(_: int, __: Any, output: Any) -> None:
            if seen is not None:
                # copies: what follows may work in place
                seen.extend(t.clone() for t in self.view.finish(output))

        def before(i: int, inputs: Any) -> Any:
            if drop_prob == 0:
                return inputs
            return self.inputs(sample, i, drop_prob, generator)

        with (
            self._dropping(drop_prob, generator),
            self.replay.replaying(self.images.cache.fetch(sample.replay)),
            self.view.watching(after, before),
            self._autocasting(),
        ):
            return self.images.run(j)

    def inputs(
        self,
        sample: Sample,
        i: int,
        drop_prob: float,
        generator: torch.Generator | None,
    ) -> Any:
        """What goes into a call of the unit, partly float.

        Args:
            sample (Sample): What the unit does on an image.
            i (int): Number of the call.
            drop_prob (float): Share of the elements that are left float.
            generator (torch.Generator, optional): Draws which.

        Returns:
            Any: ``(args, kwargs)``.
        """
        fetch = self.images.cache.fetch
        inputs = fetch(sample.inputs[i])
        if drop_prob == 0:
            return inputs
        return mix(inputs, fetch(sample.exact[i]), drop_prob, generator)

    @contextmanager
    def _dropping(
        self, drop_prob: float, generator: torch.Generator | None
    ) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self.view.layers.values():
                stack.enter_context(layer.dropping(drop_prob, generator))
            yield

    def _autocasting(self) -> AbstractContextManager[Any]:
        """Of steps alone: what is judged is computed exactly."""
        if self.settings.autocast is None or not torch.is_grad_enabled():
            return nullcontext()
        return in_bfloat16(self.session.layers, self.session.device)

    @torch.no_grad()
    def loss_on(self, chosen: list[int]) -> float:
        """Mean loss over images of all ranks, nothing dropped."""
        mine = [j for j in chosen if j in self.samples]
        losses = [self.loss(j) for j in mine]
        # looked at once: each look makes a GPU wait
        found = torch.stack(losses).tolist() if losses else []
        total = torch.tensor(sum(found), dtype=torch.float64)
        if get_world_size() > 1:
            all_reduce(total)
        return float(total) / len(chosen)
