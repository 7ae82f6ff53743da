# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Multiplications with accumulation, of every call of every layer."""

from collections.abc import Mapping, Sequence
from math import prod

from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..layers import MatMul
from ..structures import LayerGraph

Shape = Sequence[int]
Macs = Mapping[str, Sequence[int]]
"""MACs of each call of each layer."""
Bits = Mapping[str, tuple[float, float]]
"""Bits of the two operands of each layer: weight and input, or both inputs
of a product."""


def layer_macs(
    layer: nn.Module, inputs: Sequence[Shape], output: Shape
) -> int | None:
    """MACs of one call of a layer.

    Zeros of a padding are multiplied like other numbers, and a transposed
    convolution multiplies what its padding then cuts off. Biases,
    activation functions and the sampling of a deformable convolution are
    not counted.

    Args:
        layer (nn.Module): A convolution of any groups, dilation and stride,
            transposed, deformable; a linear layer; or a product. Float or
            quantized.
        inputs (Sequence): Shapes of its inputs, (N, C_in, H, W) for a
            convolution, (..., C_in) for a linear layer, and (..., n, k) and
            (..., k, m) for a product.
        output (Sequence[int]): Shape of its output.

    Returns:
        int | None: The number, None for a layer of another kind.

    Examples:
        >>> layer_macs(nn.Linear(3, 4), [(2, 5, 3)], (2, 5, 4))
        120
    """
    if isinstance(layer, MatMul):
        return prod(output) * inputs[0][-1]
    if isinstance(layer, _ConvTransposeNd):
        # weight (C_in, C_out / groups, kH, kW), met once by each input
        return prod(inputs[0]) * prod(layer.weight.shape[1:])
    kinds = (_ConvNd, nn.Linear, DeformConv2d, ModulatedDeformConv2d)
    if isinstance(layer, kinds):
        # weight (C_out, C_in / groups, kH, kW), met once by each output
        return prod(output) * prod(layer.weight.shape[1:])
    return None


def count_macs(model: nn.Module, graph: LayerGraph) -> dict[str, list[int]]:
    """MACs of every call in the surveyed forward.

    Args:
        model (nn.Module): The surveyed model, float or quantized.
        graph (LayerGraph): From :func:`mmdet_ptq.graph.survey`.

    Returns:
        dict[str, list[int]]: One number for each call of each layer, in
        execution order; five for a head that five pyramid levels share.
        Layers of kinds that :func:`layer_macs` does not know are left out.
    """
    modules = dict(model.named_modules())
    found = {}
    for name, node in graph.layers.items():
        calls = [
            layer_macs(
                modules[name],
                [graph.values[i].shape for i in op.inputs],
                graph.values[op.outputs[0]].shape,
            )
            for op in node.calls
        ]
        if None not in calls:
            found[name] = [n for n in calls if n is not None]
    return found
