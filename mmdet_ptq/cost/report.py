# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The cost of one surveyed forward, before and after quantization."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from torch import nn

from ..graph.vocabulary import MIXING, canonical
from ..structures import LayerGraph, LayerNode, QuantPlan
from .bops import FLOAT_BITS, all_paired_bits, bops, operand_bits
from .grouping import grouping_bops
from .macs import Bits, Macs, count_macs
from .paper import reg_ptq_flops
from .storage import storage_bits


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
        ``bytes`` is the size of all parameters, ``float`` and ``quantized``;
        ``layers`` has of each layer its part, MACs, BOPs (without those of
        ``grouping``) and calls, of both operands bits and elements (of
        inputs over all calls), its parameters and their bytes;
        ``not_counted`` says how often other operations that multiply were
        called.
    """
    macs = count_macs(model, graph)
    modules = dict(model.named_modules())
    bits = {
        name: operand_bits(plan.layers[name], modules[name]) for name in macs
    }
    paired = all_paired_bits(modules, graph, macs)
    sizes = storage_bits(model, graph)
    total = sum(map(sum, macs.values()))
    scaled = scaled_elements(model, graph, plan)
    grouping = grouping_bops(model, graph, plan)
    quantized = bops(macs, bits, paired) + scaled * FLOAT_BITS**2
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
        bytes=_bytes(sizes.values()),
        layers=_layers(model, graph, macs, bits, paired, sizes),
        not_counted=_not_counted(graph, plan, macs),
    )


def _layers(
    model: nn.Module,
    graph: LayerGraph,
    macs: Macs,
    bits: Bits,
    paired: Mapping[str, float],
    sizes: Mapping[str, tuple[int, int]],
) -> dict[str, dict[str, Any]]:
    """What :func:`cost_of` says of each layer."""
    found = {}
    for name, calls in macs.items():
        node = graph.layers[name]
        # a model that is not converted yet has no twins
        full, packed = sizes.get(name, (node.params * 32, node.params * 32))
        found[name] = dict(
            part=part_of(node),
            macs=sum(calls),
            bops=bops({name: calls}, bits, paired),
            calls=len(calls),
            bits=list(bits[name]),
            elements=_elements(model.get_submodule(name), node, graph),
            params=full // 32,
            bytes=_bytes([(full, packed)]),
        )
    return found


def _bytes(sizes: Iterable[tuple[int, int]]) -> dict[str, float]:
    full, packed = (sum(side) / 8 for side in zip(*sizes, strict=True))
    return dict(float=full, quantized=packed)


def _elements(
    layer: nn.Module, node: LayerNode, graph: LayerGraph
) -> dict[str, int]:
    """Of the weight and of the input, or of both inputs of a product."""
    weight = layer._parameters.get('weight')
    found = {} if weight is None else dict(weight=weight.numel())
    for at, port in enumerate(node.ports):
        read = [graph.values[call.inputs[at]].shape for call in node.calls]
        found[port] = sum(map(prod, read))
    return found


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
