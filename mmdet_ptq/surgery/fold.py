# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Batch norms vanish into the layer before them."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import PTQError
from .modules import find_module, places_of


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is a transposed convolution."""
    # deformable convs say `transposed = False` too
    return bool(getattr(layer, 'transposed', False))


def out_channels(layer: nn.Module) -> int:
    """Number of output channels of a convolution or linear layer."""
    if is_transposed(layer):
        return layer.weight.shape[1] * layer.groups
    return layer.weight.shape[0]


def scaled_outputs(weight: Tensor, scale: Tensor, layer: nn.Module) -> Tensor:
    """W * s along the output channels; ``scale`` has shape (C_out, )."""
    if not is_transposed(layer):
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    # shape (C_in, C_out / groups, ...): input channels are sorted by group
    groups = layer.groups
    grouped = weight.view(groups, -1, *weight.shape[1:])
    factor = scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * factor).view_as(weight)


def ensure_bias(layer: nn.Module, channels: int) -> None:
    """Gives a layer a bias of zeros, if it has none.

    Args:
        layer (nn.Module): A convolution or linear layer.
        channels (int): Its output channels.
    """
    if layer._parameters.get('bias') is None:
        layer.bias = nn.Parameter(
            layer.weight.new_zeros(channels),
            requires_grad=layer.weight.requires_grad,
        )


def remove_norm(model: nn.Module, norm: nn.Module) -> None:
    """Puts an identity wherever a model has a norm.

    Args:
        model (nn.Module): The model.
        norm (nn.Module): The norm; it may have several parents.
    """
    # through `_modules`: a ConvModule or a Sequential knows its norm by a
    # name made at run time
    for parent, name in places_of(model, norm):
        identity = nn.Identity()
        identity.train(norm.training)
        parent._modules[name] = identity


@torch.no_grad()
def fold_batch_norm(model: nn.Module, norm: str, layer: str) -> None:
    """Folds a batch norm into the layer before it, in place.

    With ``s = gamma / sqrt(var + eps)`` the layer becomes ``W' = W * s``
    and ``b' = beta + (b - mean) * s``, computed in float64; the norm
    becomes an ``nn.Identity``. A missing bias is added.

    Args:
        model (nn.Module): The model.
        norm (str): Name of the batch norm.
        layer (str): Name of the layer, as found by the survey.

    Raises:
        PTQError: If the model lacks one of the modules, or the named norm
            is none or of another width; the model is then left unchanged.
    """
    try:
        bn, target = find_module(model, norm), find_module(model, layer)
    except PTQError as error:
        raise PTQError(
            f'cannot fold {norm!r} into {layer!r}: {error}'
        ) from error
    if not isinstance(bn, _BatchNorm) or bn.running_mean is None:
        raise PTQError(
            f'{norm!r} is not a batch norm with statistics but '
            f'{type(bn).__name__}'
        )
    if out_channels(target) != bn.num_features:
        raise PTQError(
            f'cannot fold {norm!r} into {layer!r}: {bn.num_features} '
            f'against {out_channels(target)} channels'
        )
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    ensure_bias(target, bn.num_features)
    shift = (target.bias.double() - bn.running_mean.double()) * scale
    if bn.bias is not None:
        shift = shift + bn.bias.double()
    target.weight.copy_(scaled_outputs(target.weight.double(), scale, target))
    target.bias.copy_(shift)
    remove_norm(model, bn)
