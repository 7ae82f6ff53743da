# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Factors of channels in closed form."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...structures import Scaling
from ...surgery import (
    find_module,
    input_columns,
    output_rows,
    scale_inputs,
    scale_outputs,
)
from .seen import Seen

#: factors stay within this of their geometric mean
LIMIT = 1e3


def closed_form(one: Tensor, other: Tensor, alpha: float) -> Tensor:
    """Factors that balance what is divided and what is multiplied.

    ``s = one ** alpha / other ** (1 - alpha)``. With weights on both sides
    and alpha 0.5 that is cross-layer equalization (Nagel et al., Data-Free
    Quantization, 2019, equation 11), with activations on one side
    SmoothQuant (Xiao et al., 2023, equation 4).

    Args:
        one (Tensor): (K, ), largest magnitude of what is divided by s.
        other (Tensor): (K, ), of what is multiplied by s.
        alpha (float): Share of the differences of ``one`` that goes away.

    Returns:
        Tensor: (K, ), float64, of geometric mean 1; 1 where a magnitude is
        0.
    """
    alive = (one > 0) & (other > 0)
    logs = alpha * one.double().log() - (1 - alpha) * other.double().log()
    logs = logs.masked_fill(~alive, 0)
    logs = logs - logs.sum() / alive.sum().clamp(min=1)
    logs = logs.clamp(-math.log(LIMIT), math.log(LIMIT))
    return logs.masked_fill(~alive, 0).exp()


def spread(factors: Tensor, index: Tensor) -> Tensor:
    """Factors of each channel.

    Args:
        factors (Tensor): (K, ).
        index (Tensor): As in :class:`~mmdet_ptq.structures.Scaling`.

    Returns:
        Tensor: Of the shape of ``index``: s, its inverse, or 1.
    """
    one = factors.new_ones(1)
    table = torch.cat([(1 / factors).flip(0), one, factors])
    return table[index + len(factors)]


def apply_factors(model: nn.Module, scaling: Scaling, factors: Tensor) -> None:
    """Divides what makes channels, and multiplies what reads them.

    Args:
        model (nn.Module): Changed in place.
        scaling (Scaling): What is scaled.
        factors (Tensor): (K, ).
    """
    for name, index in scaling.outputs.items():
        scale_outputs(find_module(model, name), 1 / spread(factors, index))
    for name, index in scaling.inputs.items():
        scale_inputs(find_module(model, name), spread(factors, index))


def by_weights(
    scaling: Scaling, layers: Mapping[str, nn.Module]
) -> tuple[Tensor, Tensor]:
    """Largest weights that make the channels, and that read them.

    Args:
        scaling (Scaling): Its makers are layers.
        layers (Mapping[str, nn.Module]): By name.

    Returns:
        tuple[Tensor, Tensor]: (K, ) each.
    """
    made = {n: output_rows(layers[n]).abs().amax(1) for n in scaling.outputs}
    return (
        _largest(scaling.count, scaling.outputs, made),
        _readers(scaling, layers),
    )


def by_activations(
    scaling: Scaling, layers: Mapping[str, nn.Module], seen: Seen
) -> tuple[Tensor, Tensor]:
    """Largest activations of the channels, and weights that read them.

    Args:
        scaling (Scaling): Of queries and keys, those of both count.
        layers (Mapping[str, nn.Module]): By name.
        seen (Seen): Largest magnitudes.

    Returns:
        tuple[Tensor, Tensor]: (K, ) each.
    """
    if scaling.kind == 'qk':
        return (
            _largest(scaling.count, scaling.outputs, seen.made),
            _largest(scaling.count, scaling.outputs, seen.made, -1),
        )
    return (
        _largest(scaling.count, scaling.inputs, seen.read),
        _readers(scaling, layers),
    )


def read_squares(scaling: Scaling, layers: Mapping[str, nn.Module]) -> Tensor:
    """Squares of the weights that read the channels, added up.

    Args:
        scaling (Scaling): Queries and keys have none: 1 each.
        layers (Mapping[str, nn.Module]): By name.

    Returns:
        Tensor: (K + 1, ), float64; first the mean, of what is not scaled.
    """
    found = torch.zeros(scaling.count + 1, dtype=torch.float64)
    for name, index in scaling.inputs.items():
        squares = input_columns(layers[name]).square().sum(1)
        found.index_add_(0, index.abs(), squares.double().cpu())
    if not scaling.inputs:
        found += 1
    found[0] = found[1:].mean()
    return found


def _readers(scaling: Scaling, layers: Mapping[str, nn.Module]) -> Tensor:
    read = {n: input_columns(layers[n]).abs().amax(1) for n in scaling.inputs}
    return _largest(scaling.count, scaling.inputs, read)


def _largest(
    count: int,
    indices: dict[str, Tensor],
    values: dict[str, Tensor],
    power: int = 1,
) -> Tensor:
    """The largest value of each factor, 0 for one without any."""
    found = torch.zeros(count, dtype=torch.float64)
    for name, index in indices.items():
        mine = index * power > 0
        at = index[mine] * power - 1
        own = values[name].detach().double().cpu()[mine]
        found.scatter_reduce_(0, at, own, 'amax')
    return found
