# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Float layers that compute in bfloat16."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from torch import Tensor

from .base import QuantLayer

WITHOUT_KERNELS = (DeformConv2d, ModulatedDeformConv2d)


@contextmanager
def in_bfloat16(
    layers: Mapping[str, QuantLayer], device: torch.device
) -> Iterator[None]:
    """Has twins that are float just now compute in bfloat16.

    Inside a layer PyTorch's autocast is on; what it gives is float32 again,
    so that nothing else meets a type that it does not know. Twins that
    quantize are left alone: a step of 8 bits is as small as what bfloat16
    rounds off. So are deformable convolutions: MMCV has no such kernels.

    Args:
        layers (Mapping[str, QuantLayer]): By name.
        device (torch.device): Where they are.
    """
    kind = device.type
    before = torch.get_autocast_dtype(kind)
    enabled = torch.is_autocast_enabled(kind)

    def enter(_: QuantLayer, __: tuple) -> None:
        torch.set_autocast_enabled(kind, True)

    def leave(_: QuantLayer, __: tuple, output: Any) -> Tensor:
        torch.set_autocast_enabled(kind, enabled)
        return output.float()

    hooks = []
    for layer in layers.values():
        quantizes = layer.quantize_weight or layer.quantize_act
        if not (quantizes or isinstance(layer, WITHOUT_KERNELS)):
            hooks.append(layer.register_forward_pre_hook(enter))
            hooks.append(layer.register_forward_hook(leave))
    torch.set_autocast_dtype(kind, torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, before)
        for hook in hooks:
            hook.remove()
