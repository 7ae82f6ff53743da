# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What stays in float32 while PyTorch's autocast runs the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .base import QuantLayer


@contextmanager
def exact_under_autocast(
    model: nn.Module, device: torch.device
) -> Iterator[None]:
    """Has autocast leave alone what cannot do with fewer digits.

    Twins that quantize just now get float32, compute in it and give it: a
    step of 8 bits is as small as what bfloat16 rounds off. MMCV's operators
    get float32 as well, as they have no kernels for bfloat16, and what they
    give has the type of what came in. Without autocast nothing changes.

    Args:
        model (nn.Module): A detector with twins.
        device (torch.device): Where it runs.
    """
    kind = device.type
    inside: list[tuple[nn.Module, torch.dtype | None]] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> Any:
        exact = isinstance(module, QuantLayer) and (
            module.quantize_weight or module.quantize_act
        )
        on = torch.is_autocast_enabled(kind) and (exact or _of_mmcv(module))
        if not inside and not on:
            return None
        inside.append((module, None if exact else _type_of(args, kwargs)))
        torch.set_autocast_enabled(kind, False)
        return tree_map_only(
            Tensor, partial(_cast, torch.float32), (args, kwargs)
        )

    def leave(module: nn.Module, _: tuple, output: Any) -> Any:
        if not inside or inside[-1][0] is not module:
            return None
        _, dtype = inside.pop()
        torch.set_autocast_enabled(kind, not inside)
        if dtype is None:
            return None
        return tree_map_only(Tensor, partial(_cast, dtype), output)

    hooks = []
    for module in model.modules():
        if isinstance(module, QuantLayer) or _of_mmcv(module):
            hooks += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                # also after an error: the next forward starts afresh
                module.register_forward_hook(leave, always_call=True),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _of_mmcv(module: nn.Module) -> bool:
    """Whether it is one of MMCV's operators, or the twin of one."""
    kinds = type(module).__mro__
    return any(one.__module__.startswith('mmcv.ops.') for one in kinds)


def _type_of(*values: Any) -> torch.dtype | None:
    """Of the first floating tensor."""
    return next(
        (
            x.dtype
            for x in tree_leaves(values)
            if isinstance(x, Tensor) and x.is_floating_point()
        ),
        None,
    )


def _cast(dtype: torch.dtype, x: Tensor) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
