# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Batch norms vanish into the layer before them."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import PTQError


def _is_transposed(layer: nn.Module) -> bool:
    # deformable convs say `transposed = False` too
    return bool(getattr(layer, 'transposed', False))


def out_channels(layer: nn.Module) -> int:
    """Number of output channels of a convolution or linear layer."""
    if _is_transposed(layer):
        return layer.weight.shape[1] * layer.groups
    return layer.weight.shape[0]


def _scaled(weight: Tensor, scale: Tensor, layer: nn.Module) -> Tensor:
    """W * s along the output channels; ``scale`` has shape (C_out, )."""
    if not _is_transposed(layer):
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    # shape (C_in, C_out / groups, ...): input channels are sorted by group
    groups = layer.groups
    grouped = weight.view(groups, -1, *weight.shape[1:])
    factor = scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * factor).view_as(weight)


def _pairs(
    model: nn.Module, folds: dict[str, str]
) -> list[tuple[nn.Module, nn.Module]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    pairs = []
    for norm, layer in folds.items():
        for name in (norm, layer):
            if name not in modules:
                raise PTQError(
                    f'cannot fold {norm!r} into {layer!r}: the '
                    f'model has no module {name!r}'
                )
        pairs.append((modules[norm], modules[layer]))
    return pairs


def _ensure_bias(layer: nn.Module, channels: int) -> None:
    if layer._parameters.get('bias') is None:
        layer.bias = nn.Parameter(
            layer.weight.new_zeros(channels),
            requires_grad=layer.weight.requires_grad,
        )


def _remove(model: nn.Module, norms: list[nn.Module]) -> None:
    # through `_modules`: a ConvModule or a Sequential knows its norm by a
    # name made at run time, and a shared norm has several parents
    gone = {id(norm) for norm in norms}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if id(child) in gone:
                identity = nn.Identity()
                identity.train(child.training)
                parent._modules[name] = identity


@torch.no_grad()
def fold_batch_norms(model: nn.Module, folds: dict[str, str]) -> None:
    """Folds batch norms into the layers before them, in place.

    With ``s = gamma / sqrt(var + eps)`` the layer becomes ``W' = W * s``
    and ``b' = beta + (b - mean) * s``, computed in float64; the norm
    becomes an ``nn.Identity``. A missing bias is added.

    Args:
        model (nn.Module): The model.
        folds (dict[str, str]): Batch norm name to layer name, as found by
            the survey.

    Raises:
        PTQError: If the model lacks one of the modules, or the named norm
            is none or of another width; the model is then left unchanged.
    """
    pairs = _pairs(model, folds)
    for (norm, layer), (name, target) in zip(
        pairs, folds.items(), strict=True
    ):
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            raise PTQError(
                f'{name!r} is not a batch norm with statistics '
                f'but {type(norm).__name__}'
            )
        if out_channels(layer) != norm.num_features:
            raise PTQError(
                f'cannot fold {name!r} into {target!r}: {norm.num_features} '
                f'against {out_channels(layer)} channels'
            )
    for norm, layer in pairs:
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        _ensure_bias(layer, norm.num_features)
        shift = (layer.bias.double() - norm.running_mean.double()) * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        layer.weight.copy_(_scaled(layer.weight.double(), scale, layer))
        layer.bias.copy_(shift)
    _remove(model, [norm for norm, _ in pairs])


def restore_folds(model: nn.Module, folds: dict[str, str]) -> None:
    """Gives a float model the structure that folding leaves behind.

    Adds the biases and replaces the norms, but computes nothing: for
    loading a state dict that was saved after :func:`fold_batch_norms`.

    Args:
        model (nn.Module): The model.
        folds (dict[str, str]): Batch norm name to layer name.

    Raises:
        PTQError: If the model lacks one of the modules.
    """
    pairs = _pairs(model, folds)
    for _, layer in pairs:
        _ensure_bias(layer, out_channels(layer))
    _remove(model, [norm for norm, _ in pairs])
