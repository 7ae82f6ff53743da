# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every tensor of a model by the name its module has."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..quantizers import BaseQuantizer
from .base import quant_layers


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by name, on the CPU.

    Unlike ``state_dict`` it passes no hooks and lists shared modules once;
    what a quantizer derives from its state is left out. The order is that
    of the names: a parameter that was learned and fixed again has another
    place in its module.
    """
    derived = {
        f'{name}.{buffer}'
        for name, module in model.named_modules()
        if isinstance(module, BaseQuantizer)
        for buffer in module._non_persistent_buffers_set
    }
    named = sorted([*model.named_parameters(), *model.named_buffers()])
    return {
        name: t.detach().cpu().contiguous()
        for name, t in named
        if name not in derived
    }


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or Inf.

    Args:
        tensors (Mapping[str, Tensor]): By name, of any dtype.
    """
    return [
        name
        for name, t in tensors.items()
        if (t.is_floating_point() or t.is_complex())
        and not bool(torch.isfinite(t).all())
    ]


def restore_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts :func:`named_tensors` back, quantizer states included.

    Raises:
        CheckpointError: If tensors are missing, left over or of another
            shape.
    """
    left = dict(tensors)
    device = next(model.parameters()).device
    for name, layer in quant_layers(model).items():
        # there only after a bias correction or a reconstruction
        for extra, put in (
            ('bias_shift', layer.shift_bias),
            ('rounded', layer.fix_weight),
        ):
            found = left.get(f'{name}.{extra}')
            put(None if found is None else found.to(device))
    inside = _restore_quantizers(model, left)
    own = dict([*model.named_parameters(), *model.named_buffers()])
    own = {n: t for n, t in own.items() if id(t) not in inside}
    wrong = sorted(set(left) ^ set(own)) + [
        f'{n} {tuple(t.shape)} != {tuple(left[n].shape)}'
        for n, t in own.items()
        if n in left and t.shape != left[n].shape
    ]
    if wrong:
        more = f' and {len(wrong) - 8} more' if len(wrong) > 8 else ''
        raise CheckpointError(
            'the saved tensors are not those of this '
            f'model: {", ".join(wrong[:8])}{more}'
        )
    for name, target in own.items():
        target.data.copy_(left[name])


def _restore_quantizers(model: nn.Module, left: dict[str, Tensor]) -> set[int]:
    """Takes the states of quantizers out of what is left.

    Returns:
        set[int]: The ``id`` of every tensor of theirs.
    """
    quantizers = {
        q
        for layer in quant_layers(model).values()
        for q in (layer.weight_quantizer, *layer.act_quantizers.values())
        if q is not None
    }
    for name, module in model.named_modules():
        if module in quantizers:
            prefix = f'{name}.'
            state = {
                n.removeprefix(prefix): left.pop(n)
                for n in list(left)
                if n.startswith(prefix)
            }
            module.load_state_dict(state)
    return {id(t) for q in quantizers for t in (*q.parameters(), *q.buffers())}
