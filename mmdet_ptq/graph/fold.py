# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Batch norms that can vanish into the layer before them."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from ..structures import Op
from ..surgery import out_channels
from .sharing import Sharing
from .walk import Walker


def find_bn_folds(
    walker: Walker, sharing: Sharing
) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the batch norms that can be folded.

    A batch norm qualifies if it runs on its stored statistics and every
    call reads what one conv or linear layer just made, along the axis of
    that layer's channels, while nothing else reads that. A conv that several
    levels share but whose norms differ does not fold.

    Args:
        walker (Walker): The trace.
        sharing (Sharing): Layers that are not to be changed.

    Returns:
        tuple[dict[str, str], dict[str, str]]: Name of the batch norm to
        name of the layer; and of those that would qualify if the layer's
        weight and bias were its own, name to reason.
    """
    modules = walker.record.modules
    calls: dict[str, list] = {}
    for op in walker.ops:
        if op.module and isinstance(modules[op.module], _BatchNorm):
            calls.setdefault(op.module, []).append(op)
    folds, kept = {}, {}
    for norm, ops in calls.items():
        makers = [walker.producer(op.inputs[0]) for op in ops]
        names = {op.module if op else '' for op in makers}
        layer = names.pop()
        if names or layer not in walker.calls:
            continue
        alone = all(
            len(walker.readers[v]) == 1 and v not in walker.record.outputs
            for op in ops
            for v in op.inputs[:1]
        )
        if (
            alone
            and len(walker.calls[layer]) == len(ops)
            and _foldable(modules[norm], modules[layer])
            and _same_axis(walker, ops, modules[layer])
        ):
            why = sharing.why.get(layer) or _why_not(
                modules[norm], modules[layer]
            )
            if why:
                kept[norm] = f'not folded into {layer}: {why}'
            else:
                folds[norm] = layer
    return folds, kept


def _foldable(norm: _BatchNorm, layer: nn.Module) -> bool:
    # DeformConv2d has no bias to take the shift
    return (
        not norm.training
        and norm.running_mean is not None
        and 'bias' in layer._parameters
        and isinstance(getattr(layer, 'weight', None), Tensor)
        and out_channels(layer) == norm.num_features
    )


def _why_not(norm: _BatchNorm, layer: nn.Module) -> str:
    """What may be computed beside norm and layer, '' for nothing."""
    if type(norm).forward not in (_BatchNorm.forward, SyncBatchNorm.forward):
        return f'{type(norm).__name__} has a forward of its own'
    if 'forward' in vars(norm) or 'forward' in vars(layer):
        return 'the forward of one of them was replaced'
    if norm._forward_pre_hooks or norm._forward_hooks or layer._forward_hooks:
        return 'a hook runs at or between them'
    return ''


def _same_axis(walker: Walker, ops: list[Op], layer: nn.Module) -> bool:
    """Whether a norm takes for channels what are the layer's.

    A norm's channels come second. So do a layer's where its output has as
    many axes as its weight: of a linear layer (N, C), not (N, L, C); of a
    convolution a map with a batch axis.
    """
    shapes = [walker.values[op.inputs[0]].shape for op in ops]
    return all(len(shape) == layer.weight.dim() for shape in shapes)
