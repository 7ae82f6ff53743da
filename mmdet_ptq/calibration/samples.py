# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Calibration images and what a unit makes of them, in the cache."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch.utils._pytree import tree_flatten

from ..context import count_images, forward_context
from ..detectors import Adapter
from ..errors import NumericError
from ..layers import float_mode
from ..structures import Unit
from .cache import ActivationCache
from .replay import Replay
from .session import Session
from .units import Call, UnitView


class Images:
    """This rank's calibration images, with the constants of the float model.

    Args:
        session (Session): Gives model and images.
        cache (ActivationCache): Where tensors are kept.
        adapter (Adapter): Runs the detector on an image.
        losses (list): Losses on the detector's outputs; their targets are
            taken here, once.
        limit (int, optional): How many images at most, of each rank.

    Attributes:
        everyone (list[int]): Numbers of the readable images of all ranks.
        mine (list[int]): Those of this rank.
    """

    def __init__(
        self,
        session: Session,
        cache: ActivationCache,
        adapter: Adapter,
        losses: list[Any],
        limit: int | None = None,
    ) -> None:
        self.model = session.model
        self.cache = cache
        self.adapter = adapter
        rank, world = get_rank(), get_world_size()
        self._kept: dict[int, Any] = {}
        total = min(session.feed.total, limit or session.feed.total)
        for i in range(total):
            session.progress('float targets', '', i, total)
            data = session.feed.batch(i)
            if data is not None:
                self._kept[i * world + rank] = self._prepare(data, losses)
        gathered = all_gather_object(sorted(self._kept))
        self.mine = sorted(self._kept)
        self.everyone = sorted(j for part in gathered for j in part)

    def _prepare(self, data: dict, losses: list[Any]) -> tuple:
        batch = self.model.data_preprocessor(data, False)
        with torch.no_grad(), float_mode(self.model):
            with _forward_of(batch):
                anchor = self.adapter.anchor(self.model, batch)
            targets: list[Any] = []
            if losses:
                with _forward_of(batch):
                    outputs = self.adapter.outputs(self.model, batch, anchor)
                targets = [loss.targets(outputs) for loss in losses]
        samples = batch.pop('data_samples')
        return self.cache.keep((batch, anchor, targets)), samples

    def entries(self) -> Any:
        """Everything of theirs that is in the cache."""
        return [held for held, _ in self._kept.values()]

    def of(self, j: int) -> Any:
        """What of image ``j`` is in the cache."""
        return self._kept[j][0]

    def run(self, j: int) -> Any:
        """The detector's raw outputs on image ``j``, as it is set now."""
        (batch, anchor), samples = self._inputs(j)
        with _forward_of(batch):
            return self.adapter.outputs(
                self.model, dict(batch, data_samples=samples), anchor
            )

    def targets(self, j: int) -> list[Any]:
        """Targets of the losses on image ``j``."""
        return self.cache.fetch(self._kept[j][0][2])

    def _inputs(self, j: int) -> tuple[Any, Any]:
        (batch, anchor, _), samples = self._kept[j]
        return self.cache.fetch((batch, anchor)), samples


def _forward_of(batch: dict) -> AbstractContextManager[Any]:
    """A forward that does not go through the model's call."""
    return forward_context(count_images(batch.get('inputs')))


def of_all_images(mine: dict[int, Any]) -> list[Any]:
    """What all ranks have found of their images, in the order of these.

    Args:
        mine (dict[int, Any]): What this rank has, by number of the image.
    """
    found: dict[int, Any] = {}
    for part in all_gather_object(mine):
        found |= part
    return [found[j] for j in sorted(found)]


@dataclass
class Sample:
    """What one unit does on one image; tensors are in the cache.

    Attributes:
        levels (list[dict]): Pyramid level of each layer at each call.
        inputs (list): ``(args, kwargs)`` of each call behind a quantized
            prefix.
        exact (list, optional): The same in the float model.
        targets (list): Outputs of all calls in the float model.
        replay (dict): Outputs of what the unit cannot change.
        weights (list): Of the squared errors, like ``targets``.
        images (int, optional): How many images this one batch has.
    """

    levels: list[dict[str, int]]
    inputs: Any
    exact: Any
    targets: Any
    replay: Any
    weights: Any = None
    images: int | None = None

    @property
    def reached(self) -> bool:
        """Whether the unit gives anything: it may get no row, or no call."""
        return size_of(self.targets) > 0

    def entries(self) -> Any:
        """Everything that is in the cache."""
        return [
            self.inputs,
            self.exact,
            self.targets,
            self.replay,
            self.weights,
        ]


def collect(
    images: Images,
    view: UnitView,
    prefix: Replay | None,
    mixed: bool,
    quantized: Callable[[], Any],
) -> dict[int, Sample]:
    """Runs this rank's images through a unit, float and quantized.

    Args:
        images (Images): The images.
        view (UnitView): The unit.
        prefix (Replay, optional): What to keep for replaying.
        mixed (bool): Whether the float inputs are kept too.
        quantized (Callable): A context in which the layers before the unit
            are quantized, and the unit and those after it are not.

    Returns:
        dict[int, Sample]: For each image.

    Raises:
        NumericError: If the float model gives NaN or Inf here.
    """
    cache = images.cache
    found = {}
    for j in images.mine:
        exact = _float_calls(images, [view], j, mixed)[0]
        calls: list[Call] = []
        stored = None
        # what is replayed may come after the unit
        stop = prefix is None
        with torch.no_grad(), quantized(), view.recording(calls.append, stop):
            if prefix is None:
                images.run(j)
            else:
                stored = prefix.record(lambda j=j: images.run(j))
        found[j] = Sample(
            [call.levels for call in exact],
            cache.keep([call.inputs for call in calls]),
            [call.inputs for call in exact] if mixed else None,
            [t for call in exact for t in call.outputs],
            cache.keep(stored),
            images=_images(exact),
        )
    return found


def collect_float(
    images: Images, views: list[UnitView], mixed: bool
) -> list[dict[int, Sample]]:
    """Runs this rank's images through units whose inputs are float.

    One forward of an image serves all units.

    Args:
        images (Images): The images.
        views (list[UnitView]): The units.
        mixed (bool): Whether ``Sample.exact`` is wanted; it is the very
            entries of ``Sample.inputs``.

    Returns:
        list[dict[int, Sample]]: For each unit and image.

    Raises:
        NumericError: If the float model gives NaN or Inf here.
    """
    found: list[dict[int, Sample]] = [{} for _ in views]
    for j in images.mine:
        of_units = _float_calls(images, views, j, True)
        for samples, calls in zip(found, of_units, strict=True):
            inputs = [call.inputs for call in calls]
            samples[j] = Sample(
                [call.levels for call in calls],
                inputs,
                inputs if mixed else None,
                [t for call in calls for t in call.outputs],
                None,
                images=_images(calls),
            )
    return found


def _float_calls(
    images: Images, views: list[UnitView], j: int, inputs: bool
) -> list[list[Call]]:
    """Calls of units in the float model, each put into the cache at once."""
    keep = images.cache.keep
    found: list[list[Call]] = [[] for _ in views]

    def note(view: UnitView, calls: list[Call], call: Call) -> None:
        if not all(bool(torch.isfinite(t).all()) for t in call.outputs):
            raise NumericError(
                f'{view.name}: its float output has NaN or Inf on '
                f'calibration image {j}'
            )
        kept = keep(call.inputs) if inputs else None
        kept_outputs = keep(call.outputs)
        calls.append(Call(kept, kept_outputs, call.levels, call.images))

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(float_mode(images.model))
        for view, calls in zip(views, found, strict=True):
            stack.enter_context(
                view.recording(partial(note, view, calls), len(views) == 1)
            )
        images.run(j)
    return found


def _images(calls: list[Call]) -> int | None:
    return calls[0].images if calls else None


def size_of(tree: Any) -> int:
    """Bytes of the cached tensors of a nested value."""
    return sum(getattr(leaf, 'size', 0) for leaf in tree_flatten(tree)[0])


def own_quantizers(session: Session, units: list[Unit], k: int) -> list[Any]:
    """Activation quantizers of unit ``k`` that no earlier unit reads.

    A tensor that several units read has one quantizer; once a unit has been
    fitted to it, it stays.

    Args:
        session (Session): The running quantization.
        units (list[Unit]): In execution order.
        k (int): Which of them.

    Returns:
        list[BaseQuantizer]: Each once.
    """
    layers = session.layers
    seen: set[int] = set()
    for unit in units[: k + 1]:
        fresh = {
            id(q): q
            for n in unit.layers
            for q in layers[n].act_quantizers.values()
            if id(q) not in seen
        }
        seen |= set(fresh)
    return list(fresh.values())
