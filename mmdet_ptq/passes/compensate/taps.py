# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rows of the inputs of layers, at the same positions in every forward."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from ...calibration import (
    Images,
    Session,
    Sweep,
    UnitView,
    observing,
    sample_rows,
    steering,
)
from ...layers import QuantLayer, float_mode
from ...structures import Unit
from .moments import Product

Rows = dict[str, list[Tensor]]
"""Rows ``[G, T, N]`` of each call of each layer"""


@contextmanager
def tapping(
    session: Session,
    layers: Mapping[str, QuantLayer],
    image: int,
    count: int,
    quantized: bool,
) -> Iterator[Rows]:
    """Takes rows of every call of some layers inside the block.

    Where they are taken depends on the image, the layer, the call and the
    size of its output alone, so that rows of two forwards belong together.

    Args:
        session (Session): The running quantization.
        layers (Mapping[str, QuantLayer]): By name.
        image (int): Its number.
        count (int): Most rows of a call.
        quantized (bool): Whether rows are as the layer uses them just now;
            else float.

    Yields:
        dict[str, list[Tensor]]: Filled while the block runs.
    """
    found: Rows = {}
    numbers = {name: i for i, name in enumerate(session.graph.layers)}

    def see(name: str, port: str, level: int, x: Tensor) -> None:
        calls = found.setdefault(name, [])
        rng = session.rng(image, numbers[name], len(calls))
        where = steered.get(name, ())
        calls.append(sample_rows(layers[name], x, count, rng, where))

    with (
        steering(layers) as steered,
        observing(layers, see, quantized=quantized),
    ):
        yield found


class Forwards:
    """Forwards of this rank's images, float and quantized.

    Args:
        session (Session): The running quantization.
        images (Images): The images.
        units (Sequence[Unit]): All units, in the order they are visited.
        count (int): Most rows of a call.
    """

    def __init__(
        self,
        session: Session,
        images: Images,
        units: Sequence[Unit],
        count: int,
    ) -> None:
        self.session = session
        self.images = images
        self.count = count
        self._exact: dict[int, dict[str, Any]] = {}
        self._sweep = Sweep(session.model, units, images.cache)

    def keep_exact(
        self,
        layers: Mapping[str, QuantLayer],
        products: Mapping[str, Product],
    ) -> None:
        """Keeps what layers make of their rows in the float detector.

        Outputs are far smaller than rows. One forward of an image serves all
        layers.

        Args:
            layers (Mapping[str, QuantLayer]): By name.
            products (Mapping[str, Product]): Theirs.
        """
        images, cache = self.images, self.images.cache
        for i, j in enumerate(images.mine):
            self.session.progress('float rows', '', i, len(images.mine))
            with (
                float_mode(images.model),
                tapping(self.session, layers, j, self.count, False) as rows,
            ):
                images.run(j)
            self._exact[j] = {
                n: cache.keep([products[n](x) for x in calls], exact=True)
                for n, calls in rows.items()
            }

    def watching(self) -> AbstractContextManager[None]:
        """Inside, what did not change is not computed again."""
        return self._sweep.watching()

    def change(self, names: Collection[str]) -> None:
        """Says which layers may give something else from now on."""
        self._sweep.change(names)

    def rows(
        self, layers: Mapping[str, QuantLayer], view: UnitView
    ) -> Iterator[tuple[int, str, Tensor, Tensor | None]]:
        """Rows of the layers of a unit in the detector as it is just now.

        Args:
            layers (Mapping[str, QuantLayer]): Layers of the unit.
            view (UnitView): The unit.

        Yields:
            tuple[int, str, Tensor, Tensor | None]: Image, layer, rows ``[G,
            T, N]`` of a call, and what the float detector made of the same
            rows; None where it had no such call, or was not asked.
        """
        cache = self.images.cache
        for j in self.images.mine:

            def forward(j: int = j) -> None:
                with view.stopping():
                    self.images.run(j)

            with tapping(self.session, layers, j, self.count, True) as found:
                self._sweep.run(j, forward, view.layers)
            held = self._exact.get(j, {})
            for name, calls in found.items():
                kept = held.pop(name, [])
                exact = _paired(calls, cache.fetch(kept))
                cache.drop(kept)
                for x, y in zip(calls, exact, strict=True):
                    yield j, name, x, y


def _paired(rows: list[Tensor], exact: list[Tensor]) -> list[Tensor | None]:
    """What the float detector made of the rows of each call.

    None of a call that has no like there: other proposals, other calls.
    """
    if len(rows) != len(exact):
        return [None] * len(rows)
    return [
        y if x.shape[1] == y.shape[1] else None
        for x, y in zip(rows, exact, strict=True)
    ]
