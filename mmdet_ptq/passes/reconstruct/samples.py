# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Calibration images and what a unit makes of them, in the cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ...calibration import ActivationCache, Session
from ...detectors import Adapter
from ...errors import NumericError
from ...layers import float_mode, quant_layers
from .capture import Call, UnitView
from .replay import Prefix


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
            reset_levels(self.model)
            anchor = self.adapter.anchor(self.model, batch)
            reset_levels(self.model)
            outputs = self.adapter.outputs(self.model, batch, anchor)
            targets = [loss.targets(outputs) for loss in losses]
        samples = batch.pop('data_samples')
        return self.cache.keep((batch, anchor, targets)), samples

    def run(self, j: int) -> Any:
        """The detector's raw outputs on image ``j``, as it is set now."""
        (batch, anchor), samples = self._inputs(j)
        reset_levels(self.model)
        return self.adapter.outputs(
            self.model, dict(batch, data_samples=samples), anchor
        )

    def targets(self, j: int) -> list[Any]:
        """Targets of the losses on image ``j``."""
        return self.cache.fetch(self._kept[j][0][2])

    def _inputs(self, j: int) -> tuple[Any, Any]:
        (batch, anchor, _), samples = self._kept[j]
        return self.cache.fetch((batch, anchor)), samples


def reset_levels(model: nn.Module) -> None:
    """Starts a new forward that does not go through the model's call."""
    for layer in quant_layers(model).values():
        layer.reset_level()


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
    """

    levels: list[dict[str, int]]
    inputs: Any
    exact: Any
    targets: Any
    replay: Any
    weights: Any = None

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
    prefix: Prefix | None,
    mixed: bool,
    quantized: Callable[[], Any],
) -> dict[int, Sample]:
    """Runs this rank's images through a unit, float and quantized.

    Args:
        images (Images): The images.
        view (UnitView): The unit.
        prefix (Prefix, optional): What to keep for replaying.
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
        exact: list[Call] = []
        with torch.no_grad(), float_mode(images.model), view.recording(exact):
            images.run(j)
        if not all(
            bool(torch.isfinite(t).all()) for c in exact for t in c.outputs
        ):
            raise NumericError(
                f'{view.name}: its float output has NaN or Inf on '
                f'calibration image {j}'
            )
        calls: list[Call] = []
        stored = None
        with torch.no_grad(), quantized(), view.recording(calls):
            if prefix is None:
                images.run(j)
            else:
                stored = prefix.record(lambda j=j: images.run(j))
        found[j] = Sample(
            [call.levels for call in exact],
            cache.keep([call.inputs for call in calls]),
            cache.keep([call.inputs for call in exact]) if mixed else None,
            cache.keep([t for call in exact for t in call.outputs]),
            cache.keep(stored),
        )
    return found


def gradients(
    images: Images,
    view: UnitView,
    run: Callable[[int], Any],
    loss: Callable[[int, Any], Tensor],
) -> Iterator[tuple[int, list[Tensor]]]:
    """Gradients of a loss at the outputs of a unit, image after image.

    Args:
        images (Images): The images.
        view (UnitView): The unit.
        run (Callable): Runs image j as the loss wants it.
        loss (Callable): Loss of image and outputs.

    Yields:
        tuple[int, list[Tensor]]: Number of the image, and the gradients of
        each call and output; zero where the loss does not depend on it.
    """
    for j in images.mine:
        leaves: list[list[Tensor]] = []

        def mark(_: int, __: Any, output: Any, leaves: list = leaves) -> Any:
            return _with_leaves(output, leaves)

        with torch.enable_grad(), view.watching(mark):
            value = loss(j, run(j))
        grads: Any = [None] * len(leaves)
        if value.requires_grad and leaves:
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
        yield (
            j,
            [
                torch.zeros_like(t) if g is None else g
                for t, g in zip(leaves, grads, strict=True)
            ],
        )


def _with_leaves(output: Any, leaves: list[Tensor]) -> Any:
    """Cuts the graph at floating tensors and notes the new leaves."""

    def cut(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        leaves.append(t.detach().requires_grad_())
        return leaves[-1].clone()  # what follows may work in place

    return tree_map_only(Tensor, cut, output)


def size_of(tree: Any) -> int:
    """Bytes of the cached tensors of a nested value."""
    return sum(getattr(leaf, 'size', 0) for leaf in tree_flatten(tree)[0])


@contextmanager
def set_quantized(
    session: Session, weights: set[str], acts: set[str]
) -> Iterator[None]:
    """Quantizes these layers and leaves the others float.

    Args:
        session (Session): The running quantization.
        weights (set[str]): Layers whose weights are quantized.
        acts (set[str]): Layers whose inputs are quantized.
    """
    layers = session.layers
    before = {
        n: (m.quantize_weight, m.quantize_act) for n, m in layers.items()
    }
    for name, layer in layers.items():
        layer.quantize_weight = name in weights
        layer.quantize_act = name in acts
    try:
        yield
    finally:
        for name, flags in before.items():
            layers[name].quantize_weight, layers[name].quantize_act = flags
