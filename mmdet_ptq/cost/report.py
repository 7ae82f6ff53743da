# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The cost of one surveyed forward, before and after quantization."""

from collections import Counter
from math import prod
from typing import Any

from torch import nn

from ..graph.vocabulary import MIXING, canonical
from ..layers import QuantLayer
from ..structures import (
    LayerGraph,
    LayerNode,
    LayerPlan,
    QuantPlan,
    QuantSpec,
)
from .grouping import grouping_bops
from .macs import Bits, Macs, count_macs
from .paper import reg_ptq_flops

FLOAT_BITS = 32


def operand_bits(
    plan: LayerPlan, layer: nn.Module | None = None
) -> tuple[float, float]:
    """Bits of the two numbers that a layer multiplies, 32 for float.

    Args:
        plan (LayerPlan): What became of the layer.
        layer (nn.Module, optional): The layer. Where it has quantizers,
            widths that differ between channels are averaged: each output
            channel multiplies as often as another, and each input channel.
    """
    specs = {'weight': plan.weight, **plan.acts}
    found = {}
    if isinstance(layer, QuantLayer):
        found = {'weight': layer.weight_quantizer, **layer.act_quantizers}
    # a product has two ports and no weight
    first, second = (
        _bits(spec, found.get(name)) for name, spec in [*specs.items()][-2:]
    )
    return first, second


def _bits(spec: QuantSpec | None, quantizer: Any) -> float:
    if spec is None:
        return FLOAT_BITS
    return spec.bits if quantizer is None else quantizer.mean_bits()


def bops(macs: Macs, bits: Bits) -> float:
    """Bit operations: MACs times the bits of both operands, summed.

    Args:
        macs (Mapping): From :func:`count_macs`.
        bits (Mapping): From :func:`operand_bits`, for each layer.

    Returns:
        float: BOPs; divided by 1024 they are float32 MACs worth as much.
    """
    return sum(
        sum(n) * bits[name][0] * bits[name][1] for name, n in macs.items()
    )


def cost_of(
    model: nn.Module, graph: LayerGraph, plan: QuantPlan
) -> dict[str, Any]:
    """The ``cost`` entry of the result file.

    Args:
        model (nn.Module): The surveyed model.
        graph (LayerGraph): Its survey; calls and shapes are taken from it.
        plan (QuantPlan): Bits of every layer, as they came out.

    Returns:
        dict[str, Any]: Plain JSON types. ``input`` is the shape (N, C, H,
        W) of the surveyed image batch and ``mode`` how it was run;
        ``macs``, ``parts`` (MACs of each part), ``bops`` (``float`` and
        ``quantized``), ``flops_eq`` (BOPs / 1024) and ``reg_ptq_flops`` are
        sums over calls; ``scaled_elements`` is how many numbers are
        multiplied, in float, before they are quantized, and ``grouping`` the
        BOPs of :func:`grouping_bops`, both part of the quantized BOPs;
        ``layers`` has MACs, calls and operand bits of each
        layer; ``not_counted`` says how often other operations that multiply
        were called.
    """
    macs = count_macs(model, graph)
    modules = dict(model.named_modules())
    bits = {
        name: operand_bits(plan.layers[name], modules[name]) for name in macs
    }
    total = sum(map(sum, macs.values()))
    scaled = scaled_elements(model, graph, plan)
    grouping = grouping_bops(model, graph, plan)
    quantized = bops(macs, bits) + scaled * FLOAT_BITS**2
    quantized += sum(grouping.values())
    parts: Counter[str] = Counter()
    for name, calls in macs.items():
        parts[part_of(graph.layers[name])] += sum(calls)
    images = [v.shape for v in graph.values.values() if v.is_input]
    return dict(
        input=list(images[0]) if images else [],
        mode=graph.mode,
        macs=total,
        parts=dict(parts),
        bops=dict(float=total * FLOAT_BITS**2, quantized=quantized),
        flops_eq=quantized / FLOAT_BITS**2,
        reg_ptq_flops=reg_ptq_flops(macs, bits),
        scaled_elements=scaled,
        grouping=grouping,
        layers={
            name: dict(
                macs=sum(calls), calls=len(calls), bits=list(bits[name])
            )
            for name, calls in macs.items()
        },
        not_counted=_not_counted(graph, plan, macs),
    )


def scaled_elements(
    model: nn.Module, graph: LayerGraph, plan: QuantPlan
) -> int:
    """Elements of inputs that layers scale themselves, in all calls.

    What layers read together, and quantize alike, is scaled once.

    Args:
        model (nn.Module): The quantized model.
        graph (LayerGraph): Its survey.
        plan (QuantPlan): Its groups of inputs.
    """
    modules = dict(model.named_modules())
    shared = {port[0]: i for i, g in enumerate(plan.groups) for port in g}
    seen = {
        (shared.get(name, name), call.inputs[0])
        for name, node in graph.layers.items()
        if 'input_factors' in modules[name]._buffers
        for call in node.calls
    }
    return sum(prod(graph.values[value].shape) for _, value in seen)


def part_of(node: LayerNode) -> str:
    """Which part of the detector a layer belongs to, by its roles."""
    order = ('prediction', 'stem', 'backbone', 'neck', 'rpn', 'mask')
    return next((role for role in order if role in node.roles), 'head')


def _is_norm(graph: LayerGraph, layer: str) -> bool:
    return 'norm' in graph.layers[layer].roles


def _not_counted(
    graph: LayerGraph, plan: QuantPlan, macs: Macs
) -> dict[str, int]:
    multiply = MIXING - {'embedding'}  # which looks up
    calls = Counter(
        op.name
        for op in graph.ops
        if op.module not in macs
        and (
            (op.module in graph.layers and not _is_norm(graph, op.module))
            or op.module in plan.uncovered
            or canonical(op.name) in multiply
        )
    )
    return dict(calls)
