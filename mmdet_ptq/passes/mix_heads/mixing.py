# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The matrix that mixes the channels of a head."""

import math

import torch
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import Tensor, nn

#: eigenvalues of moments are at least this share of their mean
FLOOR = 1e-3


def mixing(one: Tensor, other: Tensor) -> Tensor:
    """The T of ``x' = T x``, ``y' = T^-T y`` that quantizes ``x . y`` best.

    With grids for each channel, an error of x is in proportion to its
    second moment, and is multiplied by that of y: it is
    ``sum_i A_ii B_ii`` of the moments A of x and B of y. T makes both the
    same matrix with equal numbers on its diagonal, which is the least it can
    be: ``(tr((A^1/2 B A^1/2)^1/2))^2 / d``. Channels are first scaled so
    that both have the same diagonal, as small eigenvalues are those of
    channels that are small on one side and large on the other.

    Args:
        one (Tensor): (H, d, d), float64, A of each head.
        other (Tensor): (H, d, d), float64, B.

    Returns:
        Tensor: (H, d, d), float64; where a moment is 0, T is 1.
    """
    traces = torch.stack([m.diagonal(0, 1, 2).sum(1) for m in (one, other)])
    alive = (traces > 0).all(0)[:, None, None]
    eye = torch.eye(one.shape[-1]).to(one)
    one, other = (torch.where(alive, m, eye) for m in (one, other))
    ours, theirs = (m.diagonal(0, 1, 2) for m in (one, other))
    both = (ours > 0) & (theirs > 0)
    scale = torch.where(both, theirs / ours, 1.0) ** 0.25
    one = one * scale[:, :, None] * scale[:, None]
    other = other / scale[:, :, None] / scale[:, None]
    root, inverse = _root(_floored(one))
    power, basis = torch.linalg.eigh(root @ _floored(other) @ root)
    power = power**0.25
    balanced = power[:, :, None] * (basis.mT @ inverse)
    mixed = even(one.shape[-1]).to(balanced) @ balanced * scale[:, None]
    return torch.where(alive, mixed, eye)


def even(size: int) -> Tensor:
    """An orthogonal matrix whose numbers are of like magnitude.

    Args:
        size (int): d.

    Returns:
        Tensor: (d, d), float64: a Hadamard matrix where d is a power of two,
        else its Kronecker product with a discrete cosine transform.
    """
    two = size & -size
    first = torch.from_numpy(hadamard(two) / math.sqrt(two))
    odd = torch.eye(size // two, dtype=torch.float64).numpy()
    return torch.kron(first, torch.from_numpy(dct(odd, axis=0, norm='ortho')))


def gain(one: Tensor, other: Tensor, mix: Tensor) -> float:
    """Predicted error of a product as it is, over that of mixed channels.

    Args:
        one (Tensor): (H, d, d), A of each head.
        other (Tensor): (H, d, d), B.
        mix (Tensor): (H, d, d), T.
    """
    inverse = torch.linalg.inv(mix)
    after = _error(mix @ one @ mix.mT, inverse.mT @ other @ inverse)
    return float(_error(one, other) / after) if after > 0 else 1.0


def _error(one: Tensor, other: Tensor) -> Tensor:
    return (one.diagonal(0, 1, 2) * other.diagonal(0, 1, 2)).sum()


def _floored(moments: Tensor) -> Tensor:
    mean = moments.diagonal(0, 1, 2).mean(1)
    eye = torch.eye(moments.shape[-1]).to(moments)
    return moments + FLOOR * mean[:, None, None] * eye


def _root(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root, and its inverse."""
    power, basis = torch.linalg.eigh(moments)
    power = power.sqrt()[:, None]
    return (basis * power) @ basis.mT, (basis / power) @ basis.mT


def mixed_rows(layer: nn.Module, places: Tensor, mix: Tensor) -> None:
    """Mixes what a layer gives, in place.

    Args:
        layer (nn.Module): A Linear or a dense Conv2d.
        places (Tensor): (H, d), its output channels of each head.
        mix (Tensor): (H, d, d), float64.
    """
    places = places.to(layer.weight.device)
    for tensor in (layer.weight, layer.bias):
        if tensor is not None:
            found = tensor.detach()[places]
            rows = found.double().reshape(*places.shape, -1)
            new = mix.to(rows) @ rows
            tensor[places] = new.view_as(found).to(tensor.dtype)


def mixed_columns(layer: nn.Module, places: Tensor, mix: Tensor) -> None:
    """Has a layer read mixed channels as it read the plain ones, in place.

    Args:
        layer (nn.Module): A Linear or a dense Conv2d.
        places (Tensor): (H, d), its input channels of each head.
        mix (Tensor): (H, d, d), float64, what they were mixed with.
    """
    places = places.to(layer.weight.device)
    columns = layer.weight.detach().transpose(0, 1)[places].double()
    # W x = (W T^-1) (T x)
    new = torch.linalg.inv(mix).mT.to(columns) @ columns.flatten(2)
    weight = layer.weight.transpose(0, 1)
    weight[places] = new.view_as(columns).to(weight.dtype)
