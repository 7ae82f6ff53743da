# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What it costs that one product has inputs of several scales.

Inputs of different scales cannot be added up as integers: each scale has a
partial sum of its own, and these are added in float. Grids that each image
takes have to be chosen besides. Bit operations are counted as 32 for each
comparison, subtraction or addition of two numbers, which is about what the
paper of IGQ-ViT (Moon et al., 2024) says it adds: 3 % for 16 groups.
"""

from collections import Counter
from math import prod
from typing import Any, cast

from torch import nn

from ..layers import MatMul, QuantLayer, quant_layers
from ..quantizers import BaseQuantizer, PerInstance
from ..structures import LayerGraph, QuantPlan
from .macs import Shape

WIDTH = 32


def grouping_bops(
    model: nn.Module, graph: LayerGraph, plan: QuantPlan
) -> dict[str, int]:
    """Bit operations that several scales of one input cost, in all calls.

    Scales of the groups of a grouped convolution, or of the heads of an
    attention, are not added to one another and cost nothing; nor do those
    of rows, once they are chosen. Where both inputs of a
    product have several scales along what is summed up, those of the one
    are taken to end where those of the other do.

    Args:
        model (nn.Module): The quantized model.
        graph (LayerGraph): Its survey.
        plan (QuantPlan): Its groups of inputs; what layers read together is
            looked at once.

    Returns:
        dict[str, int]: ``extremes`` of the channels of an image,
        ``assignment`` of these to grids, and ``partial_sums``.
    """
    shared = {port: i for i, g in enumerate(plan.groups) for port in g}
    found = Counter(extremes=0, assignment=0, partial_sums=0)
    seen: set[tuple[Any, int]] = set()
    for name, layer in quant_layers(model).items():
        if name not in graph.layers:
            continue
        node = graph.layers[name]
        quantizers: dict[str, Any] = dict(layer.act_quantizers.items())
        for call in node.calls:
            out, scales = graph.values[call.outputs[0]].shape, [1]
            for port, value in zip(node.ports, call.inputs, strict=False):
                if port not in quantizers:
                    continue
                shape = graph.values[value].shape
                scales.append(_scales(layer, port, quantizers[port], shape))
                key = (shared.get((name, port), (name, port)), value)
                if key not in seen:
                    seen.add(key)
                    softmax = 'softmax' in node.port_roles.get(port, ())
                    found.update(_choosing(quantizers[port], shape, softmax))
            found['partial_sums'] += prod(out) * (max(scales) - 1) * WIDTH
    return dict(found)


def _choosing(
    quantizer: BaseQuantizer, shape: Shape, softmax: bool
) -> dict[str, int]:
    """What it costs to choose the grids of one tensor."""
    if not isinstance(quantizer, PerInstance) or not prod(shape):
        return {}
    # what a softmax gives has a known lower end
    ends = 1 if softmax else 2
    rows = quantizer.granularity.num_rows(shape)
    return dict(
        extremes=ends * prod(shape) * WIDTH,
        assignment=ends * rows * quantizer.num_groups * WIDTH,
    )


def _scales(
    layer: QuantLayer, port: str, quantizer: BaseQuantizer, shape: Shape
) -> int:
    """How many scales of an input meet in one sum, at most."""
    grain, groups = quantizer.granularity, 1
    if grain.kind == 'tensor':
        return 1
    if isinstance(layer, MatMul):
        # (..., n, k) and (..., k, m) are summed up over k
        summed = len(shape) + layer.row_axes[port]
        along = grain.channel_axis(shape) == summed
        if along == (grain.kind == 'row'):
            return 1
    elif layer.weight_axis is None or grain.kind == 'row':
        return 1
    elif layer.has_groups:
        groups = cast(int, layer.groups)
    rows = grain.num_rows(shape)
    if isinstance(quantizer, PerInstance):
        rows = min(rows, quantizer.num_groups)
    return max(1, -(-rows // groups))
