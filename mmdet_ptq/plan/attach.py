# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers onto twins, as a plan says."""

from collections.abc import Collection

from torch import nn

from ..errors import QuantConfigError
from ..layers import QuantLayer, quant_layers
from ..quantizers import BaseQuantizer
from ..registry import QUANTIZERS, build_from
from ..structures import QuantPlan, QuantSpec


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
            group get one and the same quantizer. Quantizers there already
            go.
        levels (dict[str, int]): Calls of each layer in one forward.
        heads (Collection[str]): Children of the model whose call begins the
            count of levels anew.
    """
    layers = quant_layers(model)
    device = next(model.parameters()).device
    weights = {
        name: build_quantizer(one.weight, layers[name], 'weight', name).to(
            device
        )
        for name, one in plan.layers.items()
        if one.weight is not None
    }
    acts: dict[str, dict[str, BaseQuantizer]] = {name: {} for name in layers}
    for group in plan.groups:
        name, port = group[0]
        spec = plan.layers[name].acts[port]
        quantizer = build_quantizer(spec, layers[name], port, name).to(device)
        for name, port in group:
            acts[name][port] = quantizer
    for name, layer in layers.items():
        layer.attach(
            weights.get(name),
            acts[name],
            levels.get(name, 1),
            name.partition('.')[0] in heads,
        )


def build_quantizer(
    spec: QuantSpec, layer: QuantLayer, tensor: str, name: str
) -> BaseQuantizer:
    """Builds the quantizer of one tensor.

    Args:
        spec (QuantSpec): What the tensor becomes.
        layer (QuantLayer): The layer.
        tensor (str): ``'weight'`` or the name of a port.
        name (str): Name of the layer, for messages.

    Returns:
        BaseQuantizer: Without a range, on the CPU.

    Raises:
        QuantConfigError: On an unknown quantizer, or arguments that do not
            fit the layer.
    """
    args = dict(spec.args)
    if tensor == 'weight':
        args.setdefault('axis', layer.weight_axis)
        args['role'] = 'weight'
    else:
        args.setdefault('axis', layer.act_axis)
        if args.get('group_size') == 'conv':
            if not layer.has_groups:
                raise QuantConfigError(
                    f"{name}: granularity='group' without group_size means "
                    "a convolution's own groups, and this layer has none; "
                    'give group_size'
                )
            args['group_size'] = layer.in_channels // layer.groups
    return build_from(
        QUANTIZERS,
        dict(type=spec.type, bits=spec.bits, **args),
        f'{name}.{tensor}',
    )
