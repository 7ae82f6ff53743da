# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rows of the inputs of layers, at the same positions in every forward."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from ...calibration import Session, observing, sample_rows, steering
from ...layers import QuantLayer

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
