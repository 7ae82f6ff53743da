# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Another quantizer for one tensor, everything else untouched."""

from collections.abc import Sequence

from torch import nn

from ..errors import QuantConfigError, unknown
from ..layers import QuantLayer, divide_batches, quant_layers
from ..quantizers import BaseQuantizer, InstanceGroupQuantizer, PerInstance
from ..structures import Port, QuantPlan, QuantSpec
from .attach import build_quantizer


def replace(
    model: nn.Module,
    plan: QuantPlan,
    layer: str,
    tensor: str,
    spec: QuantSpec | None,
) -> BaseQuantizer | None:
    """Changes model and plan for one weight or one port.

    A rounding and a bias correction that belonged to the old quantizer of a
    weight go with it. Layers that have the very same weight change together.

    Args:
        model (nn.Module): A model of twins with the plan's quantizers.
        plan (QuantPlan): Changed in place.
        layer (str): Name of the layer.
        tensor (str): ``'weight'`` or the name of a port. A port that shared
            its quantizer has one of its own afterwards.
        spec (QuantSpec, optional): What the tensor becomes, None for float.

    Returns:
        BaseQuantizer | None: The new quantizer, still without a range.

    Raises:
        QuantConfigError: If there is no such layer, tensor or quantizer;
            nothing is changed then.
    """
    layers = quant_layers(model)
    _check_names(layers, plan, layer, tensor)
    found, twin = plan.layers[layer], layers[layer]
    quantizer = None
    if spec is not None:
        device = next(model.parameters()).device
        quantizer = build_quantizer(spec, twin, tensor, layer).to(device)
    if isinstance(quantizer, PerInstance):
        divide_batches(model)
    changed = {layer: twin}
    if tensor == 'weight':
        # those that have the very same weight have one quantizer
        changed = {
            n: m
            for n, m in layers.items()
            if m.weight_axis is not None and m.weight is twin.weight
        }
        for name in changed:
            plan.layers[name].weight = spec
    else:
        found.acts[tensor] = spec
        port = (layer, tensor)
        plan.groups = [[p for p in g if p != port] for g in plan.groups]
        plan.groups = [group for group in plan.groups if group]
        if quantizer is not None:
            plan.groups.append([port])
    for name, one in changed.items():
        one.set_quantizer(tensor, quantizer)
        found = plan.layers[name]
        quantized = found.weight is not None or any(found.acts.values())
        found.why_float = '' if quantized else 'a pass left it float'
    return quantizer


def replace_group(
    model: nn.Module,
    plan: QuantPlan,
    group: Sequence[Port],
    spec: QuantSpec,
) -> BaseQuantizer:
    """Changes model and plan for one input that several layers read.

    Args:
        model (nn.Module): A model of twins with the plan's quantizers.
        plan (QuantPlan): Changed in place.
        group (Sequence[Port]): All ports of one of its groups, which share
            the new quantizer as they shared the old one.
        spec (QuantSpec): What the input becomes.

    Returns:
        BaseQuantizer: The new quantizer, still without a range.

    Raises:
        QuantConfigError: If these ports are no group, or there is no such
            quantizer; nothing is changed then.
    """
    wanted = list(group)
    if wanted not in plan.groups:
        raise QuantConfigError(
            f'the inputs {wanted} do not share one quantizer, so they cannot '
            'get another one together'
        )
    layers = quant_layers(model)
    name, port = wanted[0]
    device = next(model.parameters()).device
    quantizer = build_quantizer(spec, layers[name], port, name).to(device)
    if isinstance(quantizer, PerInstance):
        divide_batches(model)
    for name, port in wanted:
        layers[name].set_quantizer(port, quantizer)
        plan.layers[name].acts[port] = spec
    return quantizer


def regroup(
    model: nn.Module, plan: QuantPlan, group: list[Port], num_groups: int
) -> InstanceGroupQuantizer:
    """Gives ports that share grids another number of them.

    Args:
        model (nn.Module): A model of twins with the plan's quantizers.
        plan (QuantPlan): Changed in place.
        group (list[Port]): One of the plan's groups, whose quantizer is an
            ``InstanceGroupQuantizer``.
        num_groups (int): How many grids.

    Returns:
        InstanceGroupQuantizer: Theirs, without a range.

    Raises:
        QuantConfigError: If the ports have another quantizer.
    """
    layers = quant_layers(model)
    name, port = group[0]
    quantizer = layers[name].act_quantizers[port]
    if not isinstance(quantizer, InstanceGroupQuantizer):
        raise QuantConfigError(
            f'{name}.{port}: a {type(quantizer).__name__} has no number of '
            "groups; give it an 'InstanceGroupQuantizer' by a rule"
        )
    quantizer.regroup(num_groups)
    for name, port in group:
        spec = plan.layers[name].acts[port]
        args = dict(spec.args, num_groups=num_groups)
        plan.layers[name].acts[port] = QuantSpec(spec.type, spec.bits, args)
    return quantizer


def _check_names(
    layers: dict[str, QuantLayer], plan: QuantPlan, layer: str, tensor: str
) -> None:
    """Refuses a layer that is not there, or a tensor that it lacks."""
    if layer not in plan.layers:
        raise QuantConfigError(unknown('layer', layer, plan.layers))
    tensors = list(plan.layers[layer].acts)
    if layers[layer].weight_axis is not None:
        tensors.append('weight')
    if tensor not in tensors:
        raise QuantConfigError(
            unknown(f'tensor of layer {layer!r}', tensor, tensors)
        )
