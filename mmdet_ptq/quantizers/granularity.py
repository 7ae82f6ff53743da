# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which elements of a tensor share one scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ('tensor', 'channel', 'group', 'row')


@dataclass(frozen=True)
class Granularity:
    """Splits a tensor into rows whose elements share one scale.

    Attributes:
        kind (str): ``'tensor'``: one row. ``'channel'``: a row for each
            index along ``axis``. ``'group'``: ``group_size`` consecutive
            channels a row or, with ``within``, ``group_size`` consecutive
            elements of one flattened channel a row. ``'row'``: what lies
            along ``axis`` is a row, one for each index of all other axes.
        axis (int): The channel axis, or that along which a ``'row'`` lies;
            negative counts from the end.
        group_size (int, optional): Only for ``'group'``, at least 1.
        within (bool): Group inside each channel (weights) instead of
            grouping the channels (activations).

    Raises:
        ValueError: If a field is not one of the values above.
    """

    kind: str = 'tensor'
    axis: int = 1
    group_size: int | None = None
    within: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f'granularity must be one of {", ".join(KINDS)}'
                f', got {self.kind!r}'
            )
        if type(self.axis) is not int:
            raise ValueError(f'axis must be an int, got {self.axis!r}')
        size = self.group_size
        if self.kind == 'group':
            if type(size) is not int or size < 1:
                raise ValueError(
                    "granularity='group' needs a group_size "
                    f'of at least 1, got {size!r}'
                )
        elif size is not None:
            raise ValueError(
                "group_size is only for granularity='group', "
                f'not for {self.kind!r}'
            )

    def channel_axis(self, shape: Sequence[int]) -> int:
        """The channel axis of a tensor of this shape, never negative.

        Raises:
            ValueError: If a tensor of this shape has no such axis.
        """
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(
                f'a tensor of shape {tuple(shape)} has no axis {self.axis}'
            )
        return self.axis % len(shape)

    def num_rows(self, shape: Sequence[int]) -> int:
        """Number of scales that a tensor of this shape needs.

        Raises:
            ValueError: If the axis is missing or ``group_size`` does not
                divide what it groups.
        """
        if self.kind == 'tensor':
            return 1
        axis = self.channel_axis(shape)
        channels = shape[axis]
        if self.kind == 'row':
            return math.prod(shape[:axis]) * math.prod(shape[axis + 1 :])
        if self.group_size is None:
            return channels
        rest = math.prod(shape[:axis]) * math.prod(shape[axis + 1 :])
        grouped = rest if self.within else channels
        if grouped % self.group_size:
            what = 'weights a channel' if self.within else 'channels'
            below = range(min(self.group_size, grouped), 0, -1)
            near = next(d for d in below if grouped % d == 0)
            raise ValueError(
                f'group_size {self.group_size} does not divide '
                f'the {grouped} {what} of shape {tuple(shape)}, '
                f'as {near} does'
            )
        groups = grouped // self.group_size
        return channels * groups if self.within else groups

    def rows(self, x: Tensor) -> Tensor:
        """Gathers the elements that share a scale.

        Args:
            x (Tensor): Any shape.

        Returns:
            Tensor: ``[K, M]``, a view where the strides allow one; row k
            holds the elements quantized by scale k.
        """
        k = self.num_rows(x.shape)
        if self.kind != 'tensor':
            x = x.movedim(self.axis, -1 if self.kind == 'row' else 0)
        return x.reshape(k, x.numel() // k if k else 0)

    def unrows(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverse of :meth:`rows` for a tensor of the given shape."""
        if self.kind == 'tensor':
            return rows.reshape(tuple(shape))
        axis = self.channel_axis(shape)
        others = [*shape[:axis], *shape[axis + 1 :]]
        if self.kind == 'row':
            return rows.reshape(*others, shape[axis]).movedim(-1, axis)
        return rows.reshape(shape[axis], *others).movedim(0, axis)

    def expand(self, param: Tensor, shape: Sequence[int]) -> Tensor:
        """Shapes one number a row so that it broadcasts against a tensor.

        Args:
            param (Tensor): ``[K]``, or ``[1]`` to use it for every row.
            shape (Sequence[int]): Shape of the tensor.

        Returns:
            Tensor: Broadcastable to ``shape``.

        Raises:
            ValueError: If K does not fit ``shape``.
        """
        if self.kind == 'tensor' or param.numel() == 1:
            if param.numel() != 1:
                raise ValueError(f'{param.numel()} scales for a whole tensor')
            return param.reshape([1] * len(shape))
        k = self.num_rows(shape)
        if param.numel() != k:
            raise ValueError(
                f'{param.numel()} scales do not fit a tensor of '
                f'shape {tuple(shape)}, which needs {k}'
            )
        if self.within:
            repeats = math.prod(shape) // k
            return self.unrows(param[:, None].expand(k, repeats), shape)
        axis = self.channel_axis(shape)
        if self.kind == 'row':
            return param.reshape(*shape[:axis], 1, *shape[axis + 1 :])
        if self.group_size is not None:
            param = torch.repeat_interleave(param, self.group_size)
        return param.reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
