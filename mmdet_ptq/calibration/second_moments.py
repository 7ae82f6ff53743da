# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Second moments of the inputs of layers, gathered within a bound.

The squared error that a change ``dW`` of a weight makes at the output of its
layer, summed over all positions, is ``sum(dW (XᵀX) dWᵀ)``: whoever has
``XᵀX`` can judge and choose weights without another forward (Nagel et al.,
Up or Down?, 2020, equation 13; Frantar et al., GPTQ, 2023, section 3.1).
"""

from collections.abc import Iterator, Mapping
from itertools import product

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn
from torch.nn import functional

from ..errors import NumericError, QuantConfigError
from ..layers import is_leaf


class SecondMoments:
    """``XᵀX`` of the inputs of layers, over all calls and pyramid levels.

    A row of X is what one output value sees, in the order of
    ``weight.flatten(1)``: of a linear layer the vector of a position, of a
    convolution the patch under its kernel, padded as the layer pads. Each
    group of a convolution has moments of its own.

    Sums and products are of ``dtype``. In float64 they are exact to about
    n 1e-16 of ``sqrt(M[i, i] M[j, j])`` for n rows; in float32 to about
    1e-5, at half the memory.

    Whether X is the float or the quantized input is up to the caller, who
    hands it in::

        moments = SecondMoments(layers)
        with observing(
            layers, lambda name, _, __, x: moments.observe(name, x)
        ):
            session.feed.predict()
        moments.merge()

    Args:
        layers (Mapping[str, nn.Module]): By name; see :func:`moment_size`
            for which can be here and :func:`split_by_memory` for how many.
        dtype (torch.dtype): float64 or float32. Defaults to float64.
        chunk_bytes (int): Bound on the patches that are unfolded at a time,
            though a single position is never divided; a padded copy of the
            map comes on top. Defaults to 64 MiB.

    Attributes:
        counts (dict[str, int]): Rows of X so far, by layer; a layer that no
            data has reached is missing.

    Raises:
        ValueError: If a layer has no second moments, or on another dtype.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        dtype: torch.dtype = torch.float64,
        chunk_bytes: int = 64 * 2**20,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f'dtype must be float32 or float64, got {dtype}')
        for name, layer in layers.items():
            if moment_size(layer) is None:
                raise ValueError(
                    f'{name}: {type(layer).__name__} has no second moments; '
                    'linear layers and plain convolutions have'
                )
        self.layers = dict(layers)
        self.dtype = dtype
        self.chunk_bytes = chunk_bytes
        self.counts: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, name: str, x: Tensor) -> None:
        """Adds the input of one call; of layers not among ours, nothing.

        Args:
            name (str): Name of the layer.
            x (Tensor): As the layer takes it: (..., C), or (B, C, H, W).
        """
        layer = self.layers.get(name)
        if layer is None or x.numel() == 0:
            return
        total = self._sum_on(name, x.device)
        groups, size = total.shape[:2]
        # of all groups together, and once more for its transpose
        room = self.chunk_bytes // (2 * groups * size * total.itemsize)
        rows = _positions if isinstance(layer, nn.Linear) else _patches
        with torch.autocast(x.device.type, enabled=False):
            for part in rows(layer, x, max(1, room), self.dtype):
                total.baddbmm_(part, part.mT)
                self.counts[name] += part.shape[2]

    def _sum_on(self, name: str, device: torch.device) -> Tensor:
        """The running sum of a layer, made where the data is."""
        self.counts.setdefault(name, 0)
        if name not in self._sums:
            groups, size = _shape(self.layers[name])
            self._sums[name] = torch.zeros(
                groups, size, size, dtype=self.dtype
            )
        self._sums[name] = self._sums[name].to(device)
        return self._sums[name]

    def moment(self, name: str) -> Tensor:
        """``XᵀX`` of a layer, not divided by its count.

        Args:
            name (str): Name of the layer.

        Returns:
            Tensor: (groups, K, K), K being the columns of
            ``weight.flatten(1)``; it is the running sum itself.

        Raises:
            KeyError: If no data has reached the layer.
            NumericError: If it has NaN or Inf values.
        """
        found = self._sums[name]
        if not bool(torch.isfinite(found).all()):
            raise NumericError(
                f'{name}: NaN or Inf among the products of its inputs'
            )
        return found

    def merge(self) -> None:
        """Adds the sums of all ranks; call it once, after the last image."""
        if get_world_size() == 1:
            return
        for name, layer in self.layers.items():
            total = self._sum_on(name, next(layer.parameters()).device)
            count = torch.tensor(self.counts[name])
            all_reduce(total)
            all_reduce(count)
            self.counts[name] = int(count)
            if not self.counts[name]:
                del self.counts[name], self._sums[name]

    def state_dict(self) -> dict:
        """Sums and counts on the CPU, to resume."""
        return dict(
            sums={n: t.to('cpu', copy=True) for n, t in self._sums.items()},
            counts=dict(self.counts),
        )

    def load_state_dict(self, state: dict) -> None:
        """Goes on from what :meth:`state_dict` gave."""
        self._sums = {n: t.clone() for n, t in state['sums'].items()}
        self.counts = dict(state['counts'])


def moment_size(
    layer: nn.Module, dtype: torch.dtype = torch.float64
) -> int | None:
    """Bytes of the second moments of a layer.

    Args:
        layer (nn.Module): Float or twin.
        dtype (torch.dtype): Of the sums. Defaults to float64.

    Returns:
        int, optional: None for a layer that has none: its output is not the
        product of its weight with patches of its input (transposed or
        deformable convolutions), or it has no weight (matmul).
    """
    if not (is_leaf(layer) and isinstance(layer, nn.Conv2d | nn.Linear)):
        return None
    groups, size = _shape(layer)
    return groups * size**2 * dtype.itemsize


def split_by_memory(
    layers: Mapping[str, nn.Module],
    bound: int,
    dtype: torch.dtype = torch.float64,
) -> list[dict[str, nn.Module]]:
    """Divides layers so that the second moments of each part fit a bound.

    Args:
        layers (Mapping[str, nn.Module]): By name, in execution order; those
            without second moments are left out.
        bound (int): Bytes.
        dtype (torch.dtype): Of the sums. Defaults to float64.

    Returns:
        list[dict[str, nn.Module]]: Parts, in order, as few as there can be
        without changing it.

    Raises:
        QuantConfigError: If one layer alone needs more; says how much.
    """
    parts: list[dict[str, nn.Module]] = []
    left = -1
    for name, layer in layers.items():
        size = moment_size(layer, dtype)
        if size is None:
            continue
        if size > bound:
            raise QuantConfigError(
                f'{name}: its second moments take {size} bytes, more than '
                f"the bound of {bound}; give at least '{-(-size // 2**20)}MiB'"
            )
        if size > left:
            parts.append({})
            left = bound
        parts[-1][name] = layer
        left -= size
    return parts


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Groups, and the columns of ``weight.flatten(1)``."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return groups, layer.weight[0].numel()


def _positions(
    layer: nn.Linear, x: Tensor, room: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Columns (1, C, n) of at most ``room`` positions."""
    for part in x.reshape(-1, x.shape[-1]).split(room):
        yield part.to(dtype).t()[None]


def _patches(
    layer: nn.Conv2d, x: Tensor, room: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Columns (G, C / G kH kW, n) of at most ``room`` positions."""
    mode = layer.padding_mode
    x = functional.pad(
        x if x.dim() == 4 else x[None],
        layer._reversed_padding_repeated_twice,
        'constant' if mode == 'zeros' else mode,
    )
    spans = [
        d * (k - 1) + 1
        for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
    ]
    sizes = [
        (n - span) // s + 1
        for n, span, s in zip(x.shape[2:], spans, layer.stride, strict=True)
    ]
    for images, *area in _tiles(len(x), *sizes, room):
        down, along = (
            slice(a * s, (b - 1) * s + span)
            for (a, b), s, span in zip(area, layer.stride, spans, strict=True)
        )
        tile = x[slice(*images), :, down, along].to(dtype)
        columns = functional.unfold(
            tile, layer.kernel_size, layer.dilation, 0, layer.stride
        )
        columns = columns.unflatten(1, (layer.groups, -1))
        yield columns.permute(1, 2, 0, 3).flatten(2)


def _tiles(
    images: int, rows: int, columns: int, room: int
) -> Iterator[tuple[tuple[int, int], ...]]:
    """Blocks of at most ``room`` output positions: (start, stop) of each."""
    wide = min(columns, room)
    high = min(rows, max(1, room // wide)) if wide == columns else 1
    many = max(1, room // (rows * columns)) if high == rows else 1
    yield from product(
        _steps(images, many), _steps(rows, high), _steps(columns, wide)
    )


def _steps(count: int, step: int) -> list[tuple[int, int]]:
    return [(i, min(i + step, count)) for i in range(0, count, step)]
