# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Channels of layers and norms times factors.

Only numbers change, so there is nothing to be rebuilt on load.
"""

import torch
from torch import Tensor, nn

from .fold import is_transposed, scaled_outputs


@torch.no_grad()
def scale_outputs(module: nn.Module, factors: Tensor) -> None:
    """Multiplies what a layer or norm gives, channel by channel, in place.

    Args:
        module (nn.Module): A Conv2d, ConvTranspose2d or Linear, or a norm
            with a weight for each channel.
        factors (Tensor): Shape (out_channels, ).
    """
    weight, factors = module.weight, factors.to(module.weight.device).double()
    if weight.dim() == 1:
        weight.copy_(weight.double() * factors)
    else:
        weight.copy_(scaled_outputs(weight.double(), factors, module))
    if module.bias is not None:
        module.bias.copy_(module.bias.double() * factors)


def output_rows(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """Weights by output channel.

    Args:
        layer (nn.Module): A Conv2d, ConvTranspose2d or Linear.
        weight (Tensor, optional): In place of its weight.

    Returns:
        Tensor: (out_channels, n), all that makes an output channel.
    """
    weight = layer.weight.detach() if weight is None else weight
    if not is_transposed(layer):
        return weight.flatten(1)
    parted = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)
    return parted.flatten(0, 1).flatten(1)


def input_columns(layer: nn.Module) -> Tensor:
    """Weights by input channel.

    Args:
        layer (nn.Module): A Conv2d, ConvTranspose2d or Linear.

    Returns:
        Tensor: (in_channels, n), all that an input channel is multiplied
        with.
    """
    weight = layer.weight.detach()
    if is_transposed(layer):
        return weight.flatten(1)
    parted = weight.unflatten(0, (_groups(layer), -1)).transpose(1, 2)
    return parted.flatten(0, 1).flatten(1)


def scaled_inputs(layer: nn.Module, factors: Tensor) -> Tensor:
    """The weight of a layer, input channel by input channel times factors.

    Args:
        layer (nn.Module): A Conv2d, ConvTranspose2d or Linear.
        factors (Tensor): Shape (in_channels, ).

    Returns:
        Tensor: float64, of the shape of the weight.
    """
    weight = layer.weight.detach().double()
    factors = factors.to(weight)
    ones = [1] * (weight.dim() - 2)
    if is_transposed(layer):
        return weight * factors.view(-1, 1, *ones)
    grouped = weight.unflatten(0, (_groups(layer), -1))
    return (grouped * factors.view(len(grouped), 1, -1, *ones)).view_as(weight)


@torch.no_grad()
def scale_inputs(layer: nn.Module, factors: Tensor) -> None:
    """Multiplies what a layer makes of each input channel, in place.

    Args:
        layer (nn.Module): A Conv2d, ConvTranspose2d or Linear.
        factors (Tensor): Shape (in_channels, ).
    """
    layer.weight.copy_(scaled_inputs(layer, factors))


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1
