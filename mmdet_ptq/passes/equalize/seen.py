# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What calibration images show of the channels that may be scaled."""

from collections.abc import Iterable, Mapping

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from ...calibration import Session, observing
from ...errors import CalibrationError, NumericError
from ...layers import QuantLayer, float_mode
from ...structures import Port, Scaling

#: what is kept of a tensor: positions of a map along a side, rows, items
SIDE, ROWS, ITEMS = 16, 256, 8
#: of how many images
IMAGES = 8

Call = tuple[int, dict[str, Tensor]]
"""Pyramid level, and inputs by port."""


class Seen:
    """Largest magnitudes of channels, and parts of some tensors.

    Args:
        layers (Mapping[str, QuantLayer]): The twins by name.
        scalings (Iterable[Scaling]): What may be scaled.

    Attributes:
        read (dict[str, Tensor]): Of each reader the largest magnitude of
            each input channel; 0 where no image has reached it.
        made (dict[str, Tensor]): Of queries and keys that of each output.
        calls (dict[str, list[Call]]): Parts of the inputs of some calls of
            readers and products.
    """

    def __init__(
        self, layers: Mapping[str, QuantLayer], scalings: Iterable[Scaling]
    ) -> None:
        self.layers = layers
        self.read: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.calls: dict[str, list[Call]] = {}
        self._ports: dict[Port, Tensor] = {}
        self._waiting: dict[str, dict[str, Tensor]] = {}
        for one in scalings:
            self._ports |= one.ports
            self.read |= {n: self._zeros(n, i) for n, i in one.inputs.items()}
            if one.kind == 'qk':
                self.made |= {
                    n: self._zeros(n, i) for n, i in one.outputs.items()
                }

    def _zeros(self, name: str, index: Tensor) -> Tensor:
        return self.layers[name].weight.new_zeros(len(index))

    @torch.no_grad()
    def watch(self, session: Session, keep: bool) -> None:
        """Runs the float model once on each calibration image.

        Args:
            session (Session): The running quantization.
            keep (bool): Whether parts of tensors are kept.

        Raises:
            CalibrationError: If heads lie along the first axis of an input
                and batches differ in size.
            NumericError: If a layer takes or gives NaN or Inf.
        """
        self._step = max(1, session.feed.total // IMAGES) if keep else 0
        self._image = 0
        readers = [*self.read, *(name for name, _ in self._ports)]
        with (
            observing({n: self.layers[n] for n in readers}, self._input),
            observing(
                {n: self.layers[n] for n in self.made}, outputs=self._output
            ),
            float_mode(self.layers),
        ):
            session.feed.predict(0, self._after)
        if get_world_size() > 1:
            for found in (*self.read.values(), *self.made.values()):
                all_reduce(found, 'max')
        for name, found in (*self.read.items(), *self.made.items()):
            if not bool(torch.isfinite(found).all()):
                raise NumericError(
                    f'{name}: its input or output holds NaN or Inf on a '
                    'calibration image'
                )

    def _after(self, i: int) -> None:
        self._image = i + 1

    def _input(self, name: str, port: str, level: int, x: Tensor) -> None:
        if x.numel() == 0:
            return
        layer = self.layers[name]
        if name in self.read:
            _extend(self.read[name], x, layer.act_axis)
        if not self._step or self._image % self._step:
            return
        if port == 'input':
            kept = dict(input=_part(layer, x))
        else:
            kept = self._waiting.pop(name, {})
            kept[port] = self._operand(name, port, x)
            if len(kept) < len(layer.ports):
                self._waiting[name] = kept
                return
        self.calls.setdefault(name, []).append((level, kept))

    def _output(self, name: str, level: int, y: Tensor) -> None:
        if y.numel():
            _extend(self.made[name], y, self.layers[name].act_axis)

    def _operand(self, name: str, port: str, x: Tensor) -> Tensor:
        """Some rows of a product's first operand, columns of its second."""
        if not self._apart(name, len(x)):
            x = x[:ITEMS]
        axis = x.dim() - (2 if port == 'a' else 1)
        index = self._ports.get((name, port))
        if index is not None and index.shape[axis] > 1:
            return x.clone()
        step = -(-x.shape[axis] // (ROWS // 4))
        places = torch.arange(0, x.shape[axis], step, device=x.device)
        return x.index_select(axis, places)

    def _apart(self, name: str, count: int) -> bool:
        """Whether items along the first axis have factors of their own."""
        sizes = {
            len(index)
            for port in self.layers[name].ports
            if (index := self._ports.get((name, port))) is not None
        } - {1}
        if sizes - {count}:
            raise CalibrationError(
                f'EqualizeChannels: {name}: images times heads lie along the '
                f'first axis of its operands, {max(sizes)} in the first batch '
                f'and {count} in another, so it is not known which head each '
                "is of; give the attention's RoutedProducts heads(), have "
                'all batches of one size, or leave such pairs out: '
                "pairs=['layer', 'norm']"
            )
        return bool(sizes)


def _extend(found: Tensor, x: Tensor, axis: int) -> None:
    rows = x.detach().movedim(axis, -1).reshape(-1, len(found))
    torch.maximum(found, rows.abs().amax(0), out=found)


def _part(layer: nn.Module, x: Tensor) -> Tensor:
    """A part of an input that the layer can be called with."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return rows[:: -(-len(rows) // ROWS)].clone()
    if x.dim() == 4:
        x = x[:: -(-len(x) // ITEMS)]
    for axis in (-2, -1):
        size = x.shape[axis]
        if size > SIDE:
            x = x.narrow(axis, (size - SIDE) // 2, SIDE)
    return x.clone()
