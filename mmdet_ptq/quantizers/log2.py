# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Powers of two, or of its root, for what a softmax gives."""

from abc import abstractmethod

import torch
from torch import Tensor

from ..checks import number, one_of
from ..registry import QUANTIZERS
from .stored_table import (
    MAX_SCALE,
    MIN_SCALE,
    Grid,
    StoredTableQuantizer,
    grid_of,
)

BASES = {'log2': 1.0, 'sqrt2': 0.5}
ROUNDINGS = ('log', 'linear', 'inverse', 'whole')


class PowersQuantizer(StoredTableQuantizer):
    """A scale, its products with falling powers of a base, and zero.

    ``2^bits`` codes hold ``2^bits - 1`` powers and zero. The authors of
    log2 quantizers round to ``2^bits`` powers and then set all that lies
    below to zero, which is one value more than the codes can tell apart;
    in their formulas there is no zero. Both are here, by ``powers``:
    ``2^bits`` of them leave no code for zero, and their simulation at b
    bits is ``bits=b + 1, powers=2**b``, stored and counted as b + 1 bits.

    Args:
        bits (int): Bit-width, 2 to 8.
        shift (float): Is added before and taken away after: values down to
            ``-shift`` have a code. Defaults to 0.
        powers (int, optional): How many powers have a code. Defaults to
            ``2**bits - 1``.
        fixed_scale (float, optional): The scale, whatever the range. By
            default the scale is the high end of the range, plus ``shift``.
        granularity (str): ``'tensor'``, ``'channel'`` or ``'group'``.
        axis (int, optional): Channel axis. Defaults to 1.
        group_size (int, optional): Channels in a group, for ``'group'``.
        per_level (bool): Whether pyramid levels may have their own ranges.
        role (str): ``'act'``.

    Attributes:
        scale (Tensor): float32 ``[K]`` or ``[L, K]``, the highest value plus
            ``shift``.
        powers (int): How many powers have a code.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    scale: Tensor

    def __init__(
        self,
        bits: int = 4,
        shift: float = 0.0,
        powers: int | None = None,
        fixed_scale: float | None = None,
        granularity: str = 'tensor',
        axis: int | None = None,
        group_size: int | None = None,
        per_level: bool = False,
        role: str = 'act',
    ) -> None:
        super().__init__(bits, granularity, axis, group_size, per_level, role)
        number('shift', shift)
        if fixed_scale is not None:
            number('fixed_scale', fixed_scale, above=True)
        most = 2**bits
        if powers is None:
            powers = most - 1
        if type(powers) is not int or not 2 <= powers <= most:
            raise ValueError(
                f'powers must be a whole number from 2 to {most}, as many '
                f'as {bits} bits tell apart, got {powers!r}'
            )
        self.shift, self.fixed_scale = shift, fixed_scale
        self.powers: int = powers

    @property
    def has_zero(self) -> bool:
        """Whether one code stands for zero, less the shift."""
        return self.powers < 1 << self.bits

    def scale_of(self, high: Tensor) -> Tensor:
        """The scale for a high end, float32 of its shape."""
        if self.fixed_scale is not None:
            return torch.full_like(high, self.fixed_scale)
        scale = high.to(torch.float64) + self.shift
        return scale.clamp(MIN_SCALE, MAX_SCALE).to(torch.float32)

    def of_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`StoredTableQuantizer.of_range`."""
        return (self.scale_of(high),)

    @abstractmethod
    def relative(self, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The grid divided by its scale, from the highest value down.

        Args:
            *numbers (Tensor): As for :meth:`grid`.

        Returns:
            tuple[Tensor, Tensor]: float64 values ``[..., n]`` and where
            each ends ``[..., n]``, the last of them at zero.
        """

    def grid(self, *numbers: Tensor) -> Grid:
        """See :meth:`StoredTableQuantizer.grid`."""
        scale = numbers[0].to(torch.float64)[..., None]
        values, ends = self.relative(*numbers)
        values, ends = (scale * t.flip(-1) for t in (values, ends))
        if self.has_zero:
            values = torch.cat([torch.zeros_like(scale), values], -1)
        else:
            ends = ends[..., 1:]
        return grid_of(values, ends, self.shift)

    def parameter_bits(self, rows: int) -> int:
        """32 bits for each number that is not fixed."""
        return super().parameter_bits(rows) - 32 * rows * self._is_fixed()

    def _is_fixed(self) -> int:
        return int(self.fixed_scale is not None)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f'{super().extra_repr()}, shift={self.shift}, '
            f'powers={self.powers}, fixed_scale={self.fixed_scale}'
        )


@QUANTIZERS.register_module()
class LogQuantizer(PowersQuantizer):
    """``s 2^-k`` or ``s 2^(-k / 2)``, and zero; for post-softmax inputs.

    Base 2 is that of FQ-ViT (Lin et al., 2022), the root of 2 that of
    RepQ-ViT (Li et al., 2023). What is below zero becomes zero.

    By default b bits hold ``2^b - 1`` powers and zero; see ``powers``.

    Args:
        bits (int): Bit-width, 2 to 8.
        base (str): ``'log2'`` or ``'sqrt2'``.
        rounding (str): Where one value ends and the next begins. ``'log'``:
            where k is halfway. ``'linear'``: halfway between the values,
            which is the least error. ``'inverse'``: halfway between their
            inverses. ``'whole'``: the same, once the inverse is rounded to a
            whole number, as FQ-ViT's integer softmax does.
        shift (float): Is added before and taken away after: values down to
            ``-shift`` have a code. Defaults to 0.
        powers (int, optional): How many powers have a code. None is
            ``2**bits - 1``, which leaves one for zero; with ``2**bits``
            there is none. The authors' simulations at b bits have ``2**b``
            powers and zero: ``bits=b + 1, powers=2**b`` here, as no b bits
            hold them.
        fixed_scale (float, optional): The scale, whatever the range; 1 for
            a softmax, as in FQ-ViT. By default the scale is the high end of
            the range, plus ``shift``.
        granularity (str): ``'tensor'``, ``'channel'`` or ``'group'``.
        axis (int, optional): Channel axis. Defaults to 1.
        group_size (int, optional): Channels in a group, for ``'group'``.
        per_level (bool): Whether pyramid levels may have their own ranges.
        role (str): ``'act'``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(
        self,
        bits: int = 4,
        base: str = 'log2',
        rounding: str = 'log',
        shift: float = 0.0,
        powers: int | None = None,
        fixed_scale: float | None = None,
        granularity: str = 'tensor',
        axis: int | None = None,
        group_size: int | None = None,
        per_level: bool = False,
        role: str = 'act',
    ) -> None:
        super().__init__(
            bits,
            shift,
            powers,
            fixed_scale,
            granularity,
            axis,
            group_size,
            per_level,
            role,
        )
        self.base = one_of('base', base, tuple(BASES))
        self.rounding = one_of('rounding', rounding, ROUNDINGS)

    def relative(self, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`PowersQuantizer.relative`."""
        step, device = BASES[self.base], numbers[0].device
        k = torch.arange(self.powers + 1, dtype=torch.float64, device=device)
        powers = torch.exp2(-k * step)
        above, below = powers[:-1], powers[1:]
        if self.rounding == 'linear':
            below = below.clone()
            if self.has_zero:
                below[-1] = 0.0
            return above, (above + below) / 2
        if self.rounding == 'whole':
            # of 2^k whole numbers from 2^k on, the first half belong to k
            first = 1.5 / above - 0.5
            first[..., 0] = 1.5
            return above, 1 / first
        if self.rounding == 'inverse':
            return above, 2 / (1 / above + 1 / below)
        return above, torch.exp2(-(k[:-1] + 0.5) * step)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f'{super().extra_repr()}, base={self.base!r}, '
            f'rounding={self.rounding!r}'
        )
