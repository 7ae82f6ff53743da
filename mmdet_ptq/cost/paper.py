# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Costs as Reg-PTQ counts them, to compare with its tables only.

The paper (CVPR 2024) has sizes in its Table 4, in millions of float32
parameters, and in Table S5 of its supplement, in MiB. The cells of Table 4
come out with the inventory below, which is not one of unique parameters; for
the true size see :func:`mmdet_ptq.cost.storage_mb`. The FLOPs of Table 4
follow one rule for bits, but not from any count of MACs found so far.
"""

from collections.abc import Iterable

from torch import nn

from ..structures import LayerGraph
from .macs import Bits, Macs

Part = tuple[str, int, int]
"""(name, parameters, bits of each)"""

#: unit of Table 4 in bits
MILLION_FLOATS = 32e6
#: unit of Table S5 in bits
MIB = 8 * 2.0**20


def stored(inventory: Iterable[Part], unit: float) -> float:
    """Size of an inventory; scales and zero points are not counted.

    Args:
        inventory (Iterable[Part]): Parts with parameters and bits.
        unit (float): Bits in the unit of the result, ``MILLION_FLOATS`` or
            ``MIB``.

    Returns:
        float: In that unit.
    """
    return sum(params * bits for _, params, bits in inventory) / unit


def reg_ptq_inventory(
    model: nn.Module, graph: LayerGraph, bits: int, heads: bool = True
) -> list[Part]:
    """What Table 4 counts of a detector with a ResNet and an FPN.

    A layer counts once a call, so a dense head once a pyramid level, and
    the convolutions of ResNet's shortcuts once more in float. The stem has
    8 bits; prediction layers and batch norms are float.

    Args:
        model (nn.Module): The float model, its batch norms not folded.
        graph (LayerGraph): Its survey.
        bits (int): Of the other layers; 32 for the float detector.
        heads (bool): Whether the heads are quantized too ('full' in the
            table, else 'B&N'). Defaults to True.

    Returns:
        list[Part]: Biases included with their layer.
    """
    found: list[Part] = []
    rest = sum(p.numel() for p in model.parameters())
    for name, node in graph.layers.items():
        width = bits
        if bits < 32 and 'stem' in node.roles:
            width = 8
        elif 'prediction' in node.roles or (
            'head' in node.roles and not heads
        ):
            width = 32
        found.append((name, node.params * len(node.calls), width))
        if 'downsample' in name.split('.'):
            found.append((f'{name}, again', node.params, 32))
        rest -= node.params
    return [*found, ('norms', rest, 32)]


def reg_ptq_flops(macs: Macs, bits: Bits) -> float:
    """FLOPs by the rule of Table 4, from MACs of every call.

    A MAC of w and a bits counts as w * a / 128, at most one, and a float
    MAC as one. The table's own counter seems to meet a shared dense head on
    its last pyramid level only, so its cells are not those of this sum.

    Args:
        macs (Mapping): From :func:`mmdet_ptq.cost.count_macs`.
        bits (Mapping): Operand bits of each layer.

    Returns:
        float: The number, at most the MACs.
    """
    return sum(
        sum(n) * min(1.0, bits[name][0] * bits[name][1] / 128)
        for name, n in macs.items()
    )
