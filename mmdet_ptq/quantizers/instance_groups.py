# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A few grids, of which each channel of an image takes the best."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import number, one_of, whole
from ..context import images
from ..errors import CalibrationError, PTQError
from ..registry import QUANTIZERS
from .base import BaseQuantizer
from .capabilities import PerInstance
from .encoding import UniformEncoding
from .export_ops import exporting, fields, quantize_dequantize_op
from .groups import assign_groups, assign_groups_op
from .kernels import quantize_dequantize
from .uniform import UniformQuantizer


@QUANTIZERS.register_module()
class InstanceGroupQuantizer(BaseQuantizer, PerInstance):
    """Groups the channels of each image by their extremes (IGQ-ViT, 2024).

    There are G affine grids with the ends ``l_i <= 0`` and ``u_i >= 0``. A
    channel c whose extremes in an image are ``m_c`` and ``M_c`` is quantized
    with the grid of least expected error, the first of several::

        (u_i - l_i)^2 / (12 (2^bits - 1)^2)
            + clipped (max(M_c - u_i, 0)^2 + max(l_i - m_c, 0)^2)

    The first term is what rounding costs each value, the second what
    clipping costs, if so large a share of the values is clipped by so much.
    The paper takes the grid of least ``(M_c - u_i)^2 + (m_c - l_i)^2`` (eq.
    4 and 5), which clips by as much as it leaves free, however many bits
    there are. With ``granularity='row'`` the same is done with the rows of a
    softmax, whose lower ends are all 0 (eq. 8), and here with rows of other
    tensors too.

    Codes mean nothing without the groups of their tensor: :meth:`encoding`
    needs the tensor, and :meth:`decode` is that of the encoding. What was
    quantized can belong to another group than before, because clipping and
    rounding move extremes. Quantizing it once more changes the rows of which
    that is so, and no others.

    Args:
        bits (int): Bit-width, 2 to 8.
        num_groups (int): How many grids, at least 1. One is a range for the
            whole tensor.
        granularity (str): ``'channel'``, or ``'row'``: each vector that is
            multiplied and summed up has a grid, e.g. a row of a softmax, a
            query, a key, or a token that a linear layer reads.
        axis (int, optional): Channel axis, or that along which a row lies.
            Defaults to 1 and, of rows, to the last; in a detector it follows
            from the layer.
        role (str): ``'act'``; weights have no instances.
        clipped (float, optional): The share of values that a grid is taken
            to clip if it does not hold the extremes, above 0. None: grids
            are chosen by distance, as in the paper. Defaults to 0.2.

    Attributes:
        low (Tensor): float32 ``[G]``, ends of the grids; empty before
            :meth:`set_range`.
        high (Tensor): float32 ``[G]``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        bits: int = 8,
        num_groups: int = 8,
        granularity: str = 'channel',
        axis: int | None = None,
        role: str = 'act',
        clipped: float | None = 0.2,
    ) -> None:
        if role == 'weight':
            raise ValueError(
                'InstanceGroupQuantizer is for act: a weight is the same for '
                'every image; give it a UniformQuantizer'
            )
        one_of('granularity', granularity, ('channel', 'row'))
        if granularity == 'row' and axis is None:
            axis = -1
        super().__init__(bits, granularity, axis, role=role)
        self.num_groups = whole('num_groups', num_groups, 1)
        if clipped is not None:
            clipped = number('clipped', clipped, 0, 1, above=True)
        self.clipped = clipped
        self.images_apart = granularity == 'channel'
        #: scale and zero point of each group
        self.grids = UniformQuantizer(bits, granularity='channel', axis=0)
        self.register_buffer('low', torch.empty(0))
        self.register_buffer('high', torch.empty(0))

    def regroup(self, num_groups: int) -> None:
        """Has another number of grids from now on, and no range yet.

        Args:
            num_groups (int): How many, at least 1.
        """
        self.num_groups = whole('num_groups', num_groups, 1)
        device = self.low.device
        self.grids = UniformQuantizer(
            self.bits, granularity='channel', axis=0
        ).to(device)
        self.low = torch.empty(0, device=device)
        self.high = torch.empty(0, device=device)
        self.initialized.fill_(False)

    @property
    def room(self) -> float | None:
        """See :func:`grid_costs`."""
        if self.clipped is None:
            return None
        return 1 / (12 * (2.0**self.bits - 1) ** 2 * self.clipped)

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Fixes the grids.

        Args:
            low (Tensor): ``[G]`` or ``[1, G]``, the ends of each group.
            high (Tensor): Shaped like ``low``, nowhere below it.

        Raises:
            ValueError: On shapes or values that are no such ends.
        """
        self.check_range(low, high)
        low, high = low.reshape(-1), high.reshape(-1)
        if len(low) != self.num_groups:
            raise ValueError(
                f'{len(low)} ranges for num_groups={self.num_groups}; give '
                'set_range one lower and one upper end for each group, or '
                'change num_groups before'
            )
        self.grids.set_range(low, high)
        self.low = low.to(self.low.device, torch.float32, copy=True)
        self.high = high.to(self.high.device, torch.float32, copy=True)
        self.initialized.fill_(True)

    def check_shape(self, shape: Sequence[int]) -> None:
        """See :meth:`BaseQuantizer.check_shape`."""
        super().check_shape(shape)
        if self.granularity.kind == 'row':
            return
        channels = shape[self.granularity.channel_axis(shape)]
        if channels < self.num_groups:
            raise ValueError(
                f'num_groups {self.num_groups} is more than the {channels} '
                f'channels of shape {tuple(shape)}'
            )

    @torch.no_grad()
    def groups_of(self, x: Tensor) -> Tensor:
        """The group of each channel, or of each row.

        Args:
            x (Tensor): Of one image, unless rows are grouped.

        Returns:
            Tensor: int64 ``[K]``.

        Raises:
            CalibrationError: If there are no ranges yet.
            PTQError: If there are several images in the running forward.
        """
        if not len(self.low):
            raise self.no_range()
        if self.images_apart and not torch.compiler.is_compiling():
            _check_one_image()
        x = x.detach()
        if exporting():
            found: Tensor = assign_groups_op(
                x, self.low, self.high, *fields(self.granularity), self.room
            )
            return found
        return assign_groups(
            x, self.low, self.high, self.granularity, self.room
        )

    def _grid_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each row of a tensor."""
        group = self.groups_of(x)
        scale, zero = self.grids.parameters_of()
        return scale[group], zero[group]

    def encoding(
        self, x: Tensor | None = None, level: int = 0
    ) -> UniformEncoding:
        """The grid of one tensor.

        Args:
            x (Tensor, optional): The tensor; needed.
            level (int): Not looked at.

        Returns:
            UniformEncoding: A scale and a zero point for each channel or
            row.

        Raises:
            CalibrationError: If there are no ranges yet, or no tensor.
            PTQError: If there are several images in the running forward.
        """
        if x is None:
            raise CalibrationError(
                'the grid depends on the tensor: give it to encoding(x), and '
                'decode with what that returns'
            )
        return UniformEncoding(
            self.bits, self.granularity, *self._grid_of(x), *self._codes()
        )

    def _codes(self) -> tuple[int, int]:
        return self.grids.qmin, self.grids.qmax

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Quantizes and dequantizes.

        Args:
            x (Tensor): Any strides and float type, of one image unless rows
                are grouped.
            level (int): Not looked at.

        Returns:
            Tensor: Like ``x``. Differentiable: straight through within the
            clip range.

        Raises:
            CalibrationError: If there are no ranges yet.
            PTQError: If there are several images in the running forward.
        """
        scale, zero = self._grid_of(x)
        if exporting():
            y: Tensor = quantize_dequantize_op(
                x, scale, zero, *fields(self.granularity), *self._codes()
            )
            return y
        return quantize_dequantize(
            x, scale, zero, self.granularity, *self._codes()
        )

    def num_rows(self) -> int:
        """See :meth:`BaseQuantizer.num_rows`; the number of grids."""
        return len(self.low)

    def parameter_bits(self, rows: int) -> int:
        """64 bits a group: scale and zero point follow from its ends."""
        return rows * 64

    def storage_bits(self, shape: Sequence[int]) -> int:
        """Bits of codes, of the ends, and of the group of each row."""
        index = (self.num_groups - 1).bit_length()
        rows = self.granularity.num_rows(shape)
        codes = math.prod(shape) * self.bits
        return codes + rows * index + self.parameter_bits(self.num_groups)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f'{super().extra_repr()}, num_groups={self.num_groups}'


def _check_one_image() -> None:
    count = images()
    if count is not None and count > 1:
        raise PTQError(
            f'channels are grouped in each image, and here are {count}; call '
            "the detector with mode='predict', which takes them one by one, "
            'or with a batch of one image'
        )
