# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers onto twins, as a plan says."""

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import nn

from ..errors import PTQError, QuantConfigError
from ..layers import QuantLayer, divide_batches, quant_layers, twin_class
from ..quantizers import BaseQuantizer, PerInstance
from ..registry import QUANTIZERS, build_from
from ..structures import LayerGraph, QuantPlan, QuantSpec


def attach(
    model: nn.Module,
    plan: QuantPlan,
    levels: dict[str, int],
    heads: Collection[str] = (),
) -> None:
    """Builds every quantizer of a plan and gives it to its layers.

    Args:
        model (nn.Module): A model of twins.
        plan (QuantPlan): Specs of weights and activations; ports of one
            group get one and the same quantizer, and so do layers with one
            and the same weight. Quantizers there already go.
        levels (dict[str, int]): Calls of each layer in one forward.
        heads (Collection[str]): Children of the model whose call begins the
            count of levels anew.
    """
    layers = quant_layers(model)
    device = next(model.parameters()).device
    weights = _weight_quantizers(layers, plan, device)
    acts = _act_quantizers(layers, plan, device)
    every = [q for found in acts.values() for q in found.values()]
    if any(isinstance(q, PerInstance) for q in every):
        divide_batches(model)
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values()
    )
    for name, layer in layers.items():
        own = [p for p in layer._parameters.values() if p is not None]
        layer.attach(
            weights.get(name),
            acts[name],
            levels.get(name, 1),
            by_head=name.partition('.')[0] in heads,
            tied=any(owners[id(p)] > 1 for p in own),
        )


def _weight_quantizers(
    layers: dict[str, QuantLayer], plan: QuantPlan, device: torch.device
) -> dict[str, BaseQuantizer]:
    """By layer; one for all that have the same weight."""
    found: dict[str, BaseQuantizer] = {}
    of_weight: dict[int, BaseQuantizer] = {}
    for name, one in plan.layers.items():
        if one.weight is None:
            continue
        layer = layers[name]
        key = id(layer.weight)
        if key not in of_weight:
            quantizer = build_quantizer(one.weight, layer, 'weight', name)
            of_weight[key] = quantizer.to(device)
        found[name] = of_weight[key]
    return found


def _act_quantizers(
    layers: dict[str, QuantLayer], plan: QuantPlan, device: torch.device
) -> dict[str, dict[str, BaseQuantizer]]:
    """By layer and port; one for all ports of a group."""
    found: dict[str, dict[str, BaseQuantizer]] = {n: {} for n in layers}
    for group in plan.groups:
        name, port = group[0]
        spec = plan.layers[name].acts[port]
        quantizer = build_quantizer(spec, layers[name], port, name).to(device)
        for name, port in group:
            found[name][port] = quantizer
    return found


def build_quantizer(
    spec: QuantSpec, layer: nn.Module, tensor: str, name: str
) -> BaseQuantizer:
    """Builds the quantizer of one tensor.

    Args:
        spec (QuantSpec): What the tensor becomes.
        layer (nn.Module): The layer, float or a twin.
        tensor (str): ``'weight'`` or the name of a port.
        name (str): Name of the layer, for messages.

    Returns:
        BaseQuantizer: Without a range, on the CPU.

    Raises:
        QuantConfigError: On an unknown quantizer, or arguments that do not
            fit the layer.
    """
    args, twin = dict(spec.args), twin_class(layer)
    if tensor == 'weight':
        args.setdefault('axis', twin.weight_axis)
        args['role'] = 'weight'
    else:
        if args.get('granularity') == 'row':
            args.setdefault('axis', _row_axis(twin, tensor, name))
        args.setdefault('axis', twin.act_axis)
        if args.get('group_size') == 'conv':
            if not twin.has_groups:
                raise QuantConfigError(
                    f"{name}: granularity='group' without group_size means "
                    "a convolution's own groups, and this layer has none; "
                    'give group_size'
                )
            args['group_size'] = layer.in_channels // layer.groups
        if isinstance(args.get('group_size'), str):
            args['group_size'] = _share(args['group_size'], layer, name)
    quantizer = build_from(
        QUANTIZERS,
        dict(type=spec.type, bits=spec.bits, **args),
        f'{name}.{tensor}',
    )
    if tensor == 'weight':
        check_rows(quantizer, layer.weight.shape, f'{name}.weight')
    return quantizer


def _row_axis(twin: type[QuantLayer], port: str, name: str) -> int:
    if port not in twin.row_axes:
        raise QuantConfigError(
            f"{name}: granularity='row' is for inputs of linear layers and of "
            'products, which are summed up along one axis; match these '
            "('@linear', '@matmul'), or give this layer granularity='channel' "
            f"by a rule: dict(match='{name}', act=dict(granularity='channel'))"
        )
    return twin.row_axes[port]


def _share(size: str, layer: nn.Module, name: str) -> int:
    """``'1/8'`` as a number of channels."""
    channels = {
        n: getattr(layer, n)
        for n in ('in_features', 'in_channels')
        if n in vars(layer)
    }
    parts = int(size.removeprefix('1/'))
    for what, count in channels.items():
        if count % parts:
            raise QuantConfigError(
                f'{name}: group_size={size!r} does not divide its {count} '
                f'{what}; give this layer another group_size by a rule'
            )
        return count // parts
    raise QuantConfigError(
        f'{name}: group_size={size!r} is a share of the input channels of a '
        'linear layer or a convolution, and it is neither; give a number'
    )


def check_rows(
    quantizer: BaseQuantizer, shape: Sequence[int], where: str
) -> None:
    """Refuses a quantizer whose rows do not fit a tensor.

    Args:
        quantizer (BaseQuantizer): With or without a range.
        shape (Sequence[int]): Shape of the tensor.
        where (str): Layer and tensor, for the message.

    Raises:
        QuantConfigError: If the tensor lacks the axis, or groups do not fit
            it.
    """
    try:
        quantizer.check_shape(shape)
    except ValueError as error:
        raise QuantConfigError(
            f'{where}: {error}; give this layer other groups, or another '
            'granularity, by a rule'
        ) from error


def check_plan(model: nn.Module, plan: QuantPlan, graph: LayerGraph) -> None:
    """Builds every quantizer of a plan as a trial, and changes nothing.

    Args:
        model (nn.Module): The surveyed float model.
        plan (QuantPlan): Made for it.
        graph (LayerGraph): The survey, for the shapes of activations.

    Raises:
        PTQError: If every layer stays float.
        QuantConfigError: If arguments of a quantizer do not fit its layer
            or the tensors that the survey saw there.
    """
    if all(one.why_float for one in plan.layers.values()):
        raise PTQError('the rules quantize nothing: every layer is skipped')
    for name, one in plan.layers.items():
        layer, node = model.get_submodule(name), graph.layers[name]
        if one.weight is not None:
            build_quantizer(one.weight, layer, 'weight', name)
        for port, spec in one.acts.items():
            if spec is None:
                continue
            quantizer = build_quantizer(spec, layer, port, name)
            at = node.ports.index(port)
            for call in node.calls:
                shape = graph.values[call.inputs[at]].shape
                if shape:  # else what it was is not known any more
                    check_rows(quantizer, shape, f'{name}.{port}')
