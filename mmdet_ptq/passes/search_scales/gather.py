# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Samples of what layers take in the float detector."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size
from torch import Tensor, nn

from ...calibration import (
    Images,
    Session,
    observing,
    sample_outputs,
    sample_rows,
)
from ...errors import NumericError
from ...layers import QuantLayer, float_mode
from ...losses import GlobalLoss
from .operands import Sampled, merged

#: query rows that an entry of a product gives at least, if it has them
QUERIES = 16

Call = tuple[int, int, Any]
"""Pyramid level, number of the call in its forward, cached tensors"""


class Samples:
    """Float inputs at positions drawn from each call on each image.

    Every image and every pyramid level has the same share of positions. A
    position of a linear layer is a token, that of a convolution a patch. Of
    a product, entries of the batch are drawn, and rows of the first operand
    that all heads of an entry have in common; the second operand is whole.

    Args:
        session (Session): The running quantization.
        images (Images): The images.
        names (Collection[str]): Layers.
        rows (int): About how many positions a layer has in the end.
    """

    def __init__(
        self,
        session: Session,
        images: Images,
        names: Collection[str],
        rows: int,
    ) -> None:
        self.session = session
        self.images = images
        twins = session.layers
        self.layers = {n: twins[n] for n in session.graph.layers if n in names}
        self.rows = rows
        self._numbers = {n: i for i, n in enumerate(session.graph.layers)}
        self._inputs: dict[int, dict[str, list[Call]]] = {}
        self._slopes: dict[int, dict[str, list[Call]]] = {}

    def take(self) -> None:
        """Runs the images of this rank through the float detector."""
        images = self.images
        for i, j in enumerate(images.mine):
            self.session.progress('samples', '', i, len(images.mine))
            with float_mode(images.model), self._tapping(j):
                images.run(j)

    def take_slopes(self, loss: GlobalLoss, at: int = 0) -> None:
        """Gradients of a loss, with the detector as it is quantized now.

        In the float detector, which the loss measures the distance from, it
        is least and its gradient is 0.

        Args:
            loss (GlobalLoss): On the detector's outputs.
            at (int): Number of its targets among those of the images.
        """
        images = self.images
        for i, j in enumerate(images.mine):
            self.session.progress('gradients', '', i, len(images.mine))
            with torch.enable_grad(), self._listening(j):
                value = loss(images.run(j), images.targets(j)[at])
                if value.requires_grad:
                    value.backward()

    @contextmanager
    def _tapping(self, j: int) -> Iterator[None]:
        found: dict[str, list[Call]] = {}
        waiting: dict[str, Tensor] = {}
        keep = self.images.cache.keep

        def see(name: str, port: str, level: int, x: Tensor) -> None:
            layer = self.layers[name]
            if port == layer.ports[0] and len(layer.ports) > 1:
                waiting[name] = x
                return
            calls = found.setdefault(name, [])
            rng = self._rng(j, name, len(calls))
            if len(layer.ports) > 1:
                taken = self._operands(name, waiting.pop(name), x, rng)
            else:
                taken = (sample_rows(layer, x, self._count(name), rng),)
            whole = tuple(t.detach().float() for t in taken)
            calls.append((level, len(calls), keep(whole, exact=True)))

        with observing(self.layers, see):
            yield
        self._inputs[j] = found

    @contextmanager
    def _listening(self, j: int) -> Iterator[None]:
        """Gradients come in the reverse order of the calls."""
        counts: dict[str, list[int]] = {}
        found: dict[str, list[Call]] = {}
        keep = self.images.cache.keep

        def called(name: str, level: int, y: Tensor) -> None:
            counts.setdefault(name, []).append(level)

        def sloped(name: str, level: int, g: Tensor) -> None:
            calls = counts[name]
            at = len(calls) - 1 - calls[::-1].index(level)
            calls[at] = -1  # another call of this level came before
            rng = self._rng(j, name, at)
            layer = self.layers[name]
            if len(layer.ports) > 1:
                taken = self._outputs(name, g, rng)
            else:
                taken = sample_outputs(layer, g, self._count(name), rng)
            mine = found.setdefault(name, [])
            mine.append((level, at, keep(taken.detach().float(), exact=True)))

        with observing(self.layers, outputs=called, gradients=sloped):
            yield
        self._slopes[j] = found

    def _rng(self, j: int, name: str, call: int) -> torch.Generator:
        return self.session.rng(j, self._numbers[name], call)

    def _count(self, name: str) -> int:
        """Positions of a call."""
        calls = len(self.images.everyone) * self.layers[name].levels
        return max(1, -(-self.rows // calls))

    def _places(
        self, name: str, shape: torch.Size, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Entries and query rows ``[T, n]`` of an output of a product."""
        count = self._count(name)
        entries = min(shape[0], -(-count // QUERIES))
        rows = min(shape[-2], -(-count // entries))
        device = rng.device
        at = torch.randperm(shape[0], generator=rng, device=device)[:entries]
        drawn = torch.rand(
            entries, shape[-2], generator=rng, device=device
        ).argsort(1)
        return at, drawn[:, :rows]

    def _operands(
        self, name: str, a: Tensor, b: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (t.expand(*lead, *t.shape[-2:]) for t in (a, b))
        at, rows = self._places(name, a.shape, rng)
        return _queries(a[at.to(a.device)], rows), b[at.to(b.device)]

    def _outputs(self, name: str, y: Tensor, rng: torch.Generator) -> Tensor:
        at, rows = self._places(name, y.shape, rng)
        return _queries(y[at.to(y.device)], rows)

    def of(self, name: str) -> list[Sampled]:
        """Samples of a layer, of all ranks the same.

        Args:
            name (str): Its name.

        Returns:
            list[Sampled]: One for each pyramid level that gave any, in
            order; of products, one for each shape of the operands.

        Raises:
            NumericError: If they hold NaN or Inf.
        """
        alike: dict[tuple, list[Sampled]] = {}
        product = len(self.layers[name].ports) > 1
        for j, level, _, inputs, slopes in self._calls(name):
            inputs, slopes = (
                _on(t, self.session.device) for t in (inputs, slopes)
            )
            count = inputs[0].shape[0 if product else 1]
            if not count:
                continue
            image = torch.full((count,), j, device=inputs[0].device)
            one = Sampled(level, image, inputs, slopes)
            key = level, *(t.shape[1:] for t in inputs if product)
            alike.setdefault(key, []).append(one)
        found = [merged(alike[key], product) for key in sorted(alike)]
        tensors = [t for one in found for t in one.inputs]
        if not all(bool(t.isfinite().all()) for t in tensors):
            raise NumericError(
                f'{name}: NaN or Inf in its input during calibration; the '
                'float model overflows on an image'
            )
        return found

    def _calls(self, name: str) -> list[tuple]:
        """Image and call of every rank, in the order of the images."""
        mine = [
            (j, *call)
            for j, found in self._inputs.items()
            for call in self._with_slopes(j, name, found.get(name, []))
        ]
        if get_world_size() > 1:
            home = torch.device('cpu')
            mine = [
                (*one[:3], *(_on(t, home) for t in one[3:])) for one in mine
            ]
        everyone = [c for part in all_gather_object(mine) for c in part]
        return sorted(everyone, key=_place)

    def _with_slopes(
        self, j: int, name: str, calls: list[Call]
    ) -> Iterator[tuple[int, int, Any, Any]]:
        """Calls of an image, each with gradients; 0 where there are none."""
        cache = self.images.cache
        slopes = {
            at: entry for _, at, entry in self._slopes.get(j, {}).get(name, [])
        }
        for level, at, entry in calls:
            inputs = cache.fetch(entry)
            slope = None
            if self._slopes:
                shape = _output_shape(self.layers[name], inputs)
                slope = inputs[0].new_zeros(shape)
                held = cache.fetch(slopes[at]) if at in slopes else slope
                # other rows, where what was quantized gave other proposals
                slope = held if held.shape == shape else slope
            yield level, at, inputs, slope


def _queries(t: Tensor, rows: Tensor) -> Tensor:
    """Rows of each entry, ``[T, ..., n, k]``, by index ``[T, n]``."""
    index = rows.to(t.device)
    index = index.view(len(t), *[1] * (t.dim() - 3), -1, 1)
    return t.gather(-2, index.expand(*t.shape[:-2], -1, t.shape[-1]))


def _output_shape(
    layer: QuantLayer, inputs: tuple[Tensor, ...]
) -> tuple[int, ...]:
    if len(inputs) > 1:
        return (*inputs[0].shape[:-1], inputs[1].shape[-1])
    groups, rows = inputs[0].shape[:2]
    outputs = layer.weight.shape[0]
    if isinstance(layer, nn.ConvTranspose2d):
        outputs = layer.weight.shape[1] * groups
    return (groups, rows, outputs // groups)


def _place(one: tuple) -> tuple[int, int]:
    """Image and call."""
    return one[0], one[2]


def _on(t: Any, device: torch.device) -> Any:
    if isinstance(t, tuple):
        return tuple(one.to(device) for one in t)
    return t if t is None else t.to(device)
