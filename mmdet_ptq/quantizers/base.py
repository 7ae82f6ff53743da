# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every quantizer promises to the rest of the package."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import one_of
from ..errors import CalibrationError
from .capabilities import PerInstance
from .encoding import Encoding
from .granularity import Granularity
from .kernels import straight_through, to_dtype

ROLES = ('act', 'weight')
_SETTINGS = 'mmdet_ptq.settings'


class BaseQuantizer(nn.Module, ABC):
    """A map from float tensors to integer codes and back.

    Args:
        bits (int): Bit-width, 2 to 8.
        granularity (str): ``'tensor'``, ``'channel'`` or ``'group'``.
        axis (int, optional): Channel axis. Defaults to 1 for activations
            and 0 for weights.
        group_size (int, optional): See :class:`Granularity`; weights are
            grouped within each channel, activations by channels.
        per_level (bool): Whether pyramid levels may have ranges of their
            own.
        role (str): ``'act'`` or ``'weight'``.

    Attributes:
        initialized (Tensor): bool, whether :meth:`set_range` was called.
        symmetric (bool): Whether only ``max(|low|, |high|)`` of a range
            matters.
        allowed_bits (tuple[int, ...]): Bit-widths that the class has.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    initialized: Tensor
    symmetric: bool = False
    allowed_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8)

    def __init__(
        self,
        bits: int = 8,
        granularity: str = 'tensor',
        axis: int | None = None,
        group_size: int | None = None,
        per_level: bool = False,
        role: str = 'act',
    ) -> None:
        super().__init__()
        if type(bits) is not int or not 2 <= bits <= 8:
            raise ValueError(f'bits must be an int from 2 to 8, got {bits!r}')
        one_of('role', role, ROLES)
        if granularity == 'row' and not isinstance(self, PerInstance):
            raise ValueError(
                "granularity 'row' is for an InstanceGroupQuantizer, whose "
                f'grids each image chooses; a {type(self).__name__} has them '
                "for 'tensor', 'channel' or 'group'"
            )
        if axis is None:
            axis = 0 if role == 'weight' else 1
        self.bits = bits
        self.role = role
        self.per_level = bool(per_level)
        self.granularity = Granularity(
            granularity,
            axis,
            group_size,
            within=granularity == 'group' and role == 'weight',
        )
        self.register_buffer('initialized', torch.tensor(False))
        self.register_state_dict_post_hook(  # type: ignore[no-untyped-call]
            _say_settings
        )

    @abstractmethod
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Fixes the grid from the range it has to cover.

        Args:
            low (Tensor): ``[K]``, or ``[L, K]`` for L pyramid levels.
            high (Tensor): Shaped like ``low``, nowhere below it.

        Raises:
            ValueError: On shapes or values that are no range.
        """

    @abstractmethod
    def encoding(self, x: Tensor | None = None, level: int = 0) -> Encoding:
        """The grid as it stands now.

        Args:
            x (Tensor, optional): The tensor to quantize. A quantizer with
                parameters of its own does not look at it; one that is
                ``PerInstance`` needs it.
            level (int): Pyramid level; ignored where all levels share one
                range.

        Returns:
            Encoding: In eval, ``decode(encode(x))`` is what the forward
            gives for a float32 tensor, bit for bit.

        Raises:
            CalibrationError: If there are no parameters yet.
            IndexError: If there is no such level.
        """

    def encode(self, x: Tensor, level: int = 0) -> Tensor:
        """Codes of ``x`` (no NaN): int32 of its shape."""
        return self.encoding(x, level).encode(x)

    def decode(self, codes: Tensor, level: int = 0) -> Tensor:
        """Float32 values that the codes stand for."""
        return self.encoding(level=level).decode(codes)

    def no_range(self) -> CalibrationError:
        """What to raise where there are no parameters yet."""
        return CalibrationError(
            f'a {type(self).__name__} was used before it had a range: '
            'calibrate first, call set_range or fit, or load a quantized '
            'checkpoint'
        )

    @abstractmethod
    def num_rows(self) -> int:
        """Rows that have parameters by now, over all pyramid levels."""

    @abstractmethod
    def parameter_bits(self, rows: int) -> int:
        """Bits that the parameters of ``rows`` scales take."""

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """``decode(encode(x))`` in the dtype of ``x``.

        Its gradient passes straight through, also where ``x`` is clipped.
        A quantizer with another gradient overrides this.
        """
        encoding = self.encoding(x, level)
        y = to_dtype(encoding.decode(encoding.encode(x)), x.dtype)
        return straight_through(x, y)

    def num_levels(self) -> int:
        """Number of pyramid levels with a range of their own."""
        return 1

    def mean_bits(self, shape: Sequence[int] | None = None) -> float:
        """Bits of a code, on average over the rows.

        Args:
            shape (Sequence[int], optional): Of the tensor; not needed once
                there are ranges.
        """
        return self.bits

    def storage_bits(self, shape: Sequence[int]) -> int:
        """Bits to store a tensor of this shape: codes and parameters."""
        rows = self.granularity.num_rows(shape) * self.num_levels()
        return math.prod(shape) * self.bits + self.parameter_bits(rows)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuses tensors that it cannot quantize.

        Args:
            shape (Sequence[int]): Shape of a tensor.

        Raises:
            ValueError: If the axis is missing, or groups do not fit.
        """
        self.granularity.num_rows(shape)

    def check_range(self, low: Tensor, high: Tensor) -> None:
        """Refuses what is no range.

        Raises:
            ValueError: On shapes other than ``[K]`` or ``[L, K]``, on
                levels without ``per_level``, on NaN or Inf, or where
                ``low`` exceeds ``high``.
        """
        if low.shape != high.shape or low.dim() not in (1, 2):
            raise ValueError(
                'a range is two tensors of shape [K] or [L, K], '
                f'got {tuple(low.shape)}, {tuple(high.shape)}'
            )
        if low.numel() == 0:
            raise ValueError(f'an empty range: {tuple(low.shape)}')
        if self.granularity.kind == 'tensor' and low.shape[-1] != 1:
            raise ValueError(
                f"granularity 'tensor' has 1 row, got {low.shape[-1]}"
            )
        if low.dim() == 2 and low.shape[0] > 1 and not self.per_level:
            raise ValueError(f'{low.shape[0]} levels need per_level=True')
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise ValueError('a range holds NaN or Inf')
        if bool((low > high).any()):
            raise ValueError('the low end of a range is above its high end')

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        grain = self.granularity
        text = f'bits={self.bits}, granularity={grain.kind!r}'
        if grain.group_size:
            text += f', group_size={grain.group_size}'
        return text + (', per_level=True' if self.per_level else '')

    def settings(self) -> str:
        """What the tensors of its state mean nothing without."""
        return (
            f'{type(self).__name__}({self.extra_repr()}, '
            f'symmetric={self.symmetric}, role={self.role!r}, '
            f'axis={self.granularity.axis})'
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes the shapes of the checkpoint: a new quantizer has none.

        The state of a quantizer with other settings is refused.
        """
        given = local_metadata.get(_SETTINGS, self.settings())
        if given != self.settings():
            error_msgs.append(
                f'{prefix[:-1]} is a {self.settings()}, the state is of a '
                f'{given}: quantize by the same recipe before loading it'
            )
            return
        for name, own in [*self._buffers.items(), *self._parameters.items()]:
            found = state_dict.get(prefix + name)
            if (
                own is not None
                and isinstance(found, Tensor)
                and own.shape != found.shape
            ):
                own.data = own.new_empty(found.shape)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


def _say_settings(
    quantizer: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
) -> None:
    """Goes with a state dict where PyTorch keeps versions of modules."""
    assert isinstance(quantizer, BaseQuantizer)
    local_metadata[_SETTINGS] = quantizer.settings()
