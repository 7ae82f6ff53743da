# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Modules that pad their input with a value for each channel.

Window attention pads a map to whole windows. Once a norm before it gives
channels that are shifted by -b, what is padded has to be -b too: keys there
are not masked, so that the tokens at the right and bottom border see them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.backbones.swin import ShiftWindowMSA
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import PTQError
from ..registry import PADDED


class PadsWithValue(nn.Module):
    """Mixin: the first pad of the forward of the class beside it.

    For a module of your own whose forward pads the maps ``(N, H, W, C)``
    once, at their right and bottom, register a subclass::

        @PADDED.implements(MyWindows)
        class MyPaddedWindows(PadsWithValue, MyWindows):
            pass

    Attributes:
        pad_value (Tensor): ``[C]``.
    """

    pad_value: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the forward of the original, padding with the value."""
        with _Padding(self.pad_value):
            return super().forward(*args, **kwargs)


@PADDED.implements(ShiftWindowMSA)
class PaddedShiftWindowMSA(PadsWithValue, ShiftWindowMSA):
    """Swin's window attention, windows shifted or not."""


class _Padding(TorchFunctionMode):
    """Catches the first pad of one forward."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value: Tensor | None = value

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        if func is functional.pad and self.value is not None:
            channels, self.value = self.value, None
            return pad_with(*args, **(kwargs or {}), channels=channels)
        return func(*args, **(kwargs or {}))


def pad_with(
    x: Tensor,
    pad: Sequence[int],
    mode: str = 'constant',
    value: float | None = None,
    *,
    channels: Tensor,
) -> Tensor:
    """``torch.nn.functional.pad``, of maps at their right and bottom.

    Args:
        x (Tensor): ``(N, H, W, C)``.
        pad (Sequence[int]): Of the last axis first, before and behind.
        mode (str): ``'constant'``.
        value (float, optional): None or 0.
        channels (Tensor): ``[C]``, put there instead.

    Returns:
        Tensor: ``(N, H + bottom, W + right, C)``.

    Raises:
        PTQError: If it is to be padded in another way.
    """
    first, last, left, right, top, bottom = (*pad, *[0] * 6)[:6]
    if first or last or left or top or mode != 'constant' or value:
        raise PTQError(
            f'a map is padded by {tuple(pad)} ({mode}), and a value for each '
            'channel can only be put at its right and bottom'
        )
    channels = channels.to(x)
    side = channels.expand(*x.shape[:2], right, -1)
    x = torch.cat([x, side], 2)
    below = channels.expand(len(x), bottom, x.shape[2], -1)
    return torch.cat([x, below], 1)


def set_padding(module: nn.Module, value: Tensor) -> None:
    """Turns a module into one that pads with a value.

    Args:
        module (nn.Module): :func:`can_pad`.
        value (Tensor): ``[C]``.
    """
    module.__class__ = PADDED.get(type(module))
    module.register_buffer('pad_value', value)


def can_pad(module: nn.Module) -> bool:
    """Whether it can be turned into one that pads with a value."""
    return type(module) in PADDED
