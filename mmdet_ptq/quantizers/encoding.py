# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid of a tensor: what its codes are and what they stand for.

A quantizer gives an encoding, and packing, storage, export and the integer
reference read nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .granularity import Granularity
from .packing import check_codes, pack, unpack


@dataclass(frozen=True, eq=False)
class Encoding(ABC):
    """A frozen map from float tensors to integer codes and back.

    Parameters come as one row for each row of the granularity, or as one
    row for the whole tensor, so that an encoding exists before its tensor.

    Attributes:
        bits (int): Width of a code.
        granularity (Granularity): Which elements share a row.
    """

    bits: int
    granularity: Granularity

    @property
    @abstractmethod
    def first_code(self) -> int:
        """The lowest code; packed codes count from it."""

    @property
    @abstractmethod
    def last_code(self) -> int:
        """The highest code."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Codes of a tensor.

        Args:
            x (Tensor): Any shape, strides and float type, without NaN.

        Returns:
            Tensor: int32 of its shape.

        Raises:
            ValueError: If the rows do not fit the shape of ``x``.
        """

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Values that codes stand for.

        Args:
            codes (Tensor): Integers, any shape, from ``first_code`` to
                ``last_code``. That they lie there is not checked: on a GPU
                that would stop the queue.

        Returns:
            Tensor: float32 of its shape, without a gradient.

        Raises:
            ValueError: If the rows do not fit the shape of ``codes``, or
                these are no integers.
        """

    @abstractmethod
    def take(self, rows: Tensor) -> 'Encoding':
        """The same grid for some of its rows.

        Args:
            rows (Tensor): int64 ``[M]``, which rows; may repeat.

        Returns:
            Encoding: For tensors ``[M, ...]``, a row for each index along
            the first axis.
        """

    def pack(self, codes: Tensor) -> Tensor:
        """Codes without gaps between them.

        Args:
            codes (Tensor): Of :meth:`encode`.

        Returns:
            Tensor: uint8 on the CPU, ``ceil(numel * bits / 8)`` bytes.

        Raises:
            ValueError: If these are no integers, or one is no code of this
                encoding.
        """
        check_codes(codes)
        first, last = self.first_code, self.last_code
        found = codes.detach().cpu().to(torch.int64)
        if found.numel() and not (
            first <= int(found.min()) <= int(found.max()) <= last
        ):
            raise ValueError(
                f'codes from {int(found.min())} to {int(found.max())} do '
                f'not fit {self.bits} bits of codes from {first} to {last}'
            )
        return pack(found - first, self.bits)

    def unpack(self, packed: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverse of :meth:`pack`.

        Args:
            packed (Tensor): uint8.
            shape (Sequence[int]): Shape of the codes.

        Returns:
            Tensor: int32 of ``shape``, on the CPU.

        Raises:
            ValueError: If ``packed`` is not uint8, or its length does not
                fit bits and shape.
        """
        return unpack(packed, self.bits, tuple(shape)) + self.first_code


@dataclass(frozen=True, eq=False)
class UniformEncoding(Encoding):
    """Equal steps, with the arithmetic of ONNX.

    ``code = clip(round_half_even(x / scale) + zero_point, qmin, qmax)`` and
    ``value = (code - zero_point) * scale``, in float32.

    Attributes:
        scale (Tensor): float32 ``[K]``, above 0, in units of x.
        zero_point (Tensor): int32 ``[K]``.
        qmin (int): Lowest code.
        qmax (int): Highest code.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int

    def __post_init__(self) -> None:
        if self.scale.dim() != 1 or self.scale.shape != self.zero_point.shape:
            raise ValueError(
                'scale and zero_point must both be of shape [K], got '
                f'{tuple(self.scale.shape)}, {tuple(self.zero_point.shape)}'
            )
        if not 0 < self.qmax - self.qmin < 2**self.bits:
            raise ValueError(
                f'codes from {self.qmin} to {self.qmax} '
                f'are not 2 to 2^{self.bits} codes'
            )

    @property
    def first_code(self) -> int:
        """See :class:`Encoding`."""
        return self.qmin

    @property
    def last_code(self) -> int:
        """See :class:`Encoding`."""
        return self.qmax

    def expanded(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scale and zero point that broadcast against a tensor.

        Args:
            shape (Sequence[int]): Shape of the tensor.

        Returns:
            tuple[Tensor, Tensor]: float32 and int32.

        Raises:
            ValueError: If the rows do not fit the shape.
        """
        expand = self.granularity.expand
        return expand(self.scale, shape), expand(self.zero_point, shape)

    def take(self, rows: Tensor) -> 'UniformEncoding':
        """See :class:`Encoding`."""
        rows = rows if len(self.scale) > 1 else torch.zeros_like(rows)
        return replace(
            self,
            granularity=Granularity('channel', 0),
            scale=self.scale[rows],
            zero_point=self.zero_point[rows],
        )

    def encode(self, x: Tensor) -> Tensor:
        """See :class:`Encoding`."""
        if x.numel() == 0:
            return torch.zeros_like(x, dtype=torch.int32)
        scale, zero = self.expanded(x.shape)
        codes = torch.round(x.detach().to(torch.float32) / scale)
        codes += zero
        return codes.clamp_(self.qmin, self.qmax).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        """See :class:`Encoding`."""
        check_codes(codes)
        if codes.numel() == 0:
            return torch.zeros_like(codes, dtype=torch.float32)
        scale, zero = self.expanded(codes.shape)
        return (codes.to(torch.int32) - zero).to(torch.float32) * scale
