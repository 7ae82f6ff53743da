# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Input channels that can be scaled where they are made, at no cost."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...layers import QuantLayer
from ...structures import Scaling
from ..equalize.factors import apply_factors


def find_free(
    layers: Mapping[str, QuantLayer],
    scalings: Sequence[Scaling],
    names: set[str],
) -> Scaling | None:
    """What scales exactly the channels that some layers read, each apart.

    Weights that make them must have a step for each channel, or the factors
    would spoil their one grid.

    Args:
        layers (Mapping[str, QuantLayer]): The twins by name.
        scalings (Sequence[Scaling]): Of the graph.
        names (set[str]): Layers that read one tensor.

    Returns:
        Scaling | None: None if there is no such one.
    """
    for one in scalings:
        if set(one.inputs) != names or one.ports:
            continue
        makers = [
            layers[n].weight_quantizer for n in one.outputs if n in layers
        ]
        if any(
            q is not None and q.granularity.kind == 'tensor' for q in makers
        ):
            continue
        first = next(iter(one.inputs.values()))
        each = torch.arange(1, one.count + 1)
        if torch.equal(first.cpu().sort().values, each) and all(
            torch.equal(index, first) for index in one.inputs.values()
        ):
            return one
    return None


def divide_maker(
    model: nn.Module, free: Scaling, reader: str, factors: Tensor
) -> None:
    """Has what makes a tensor give it divided, and its readers make up.

    Args:
        model (nn.Module): Changed in place.
        free (Scaling): From :func:`find_free`.
        reader (str): A layer that reads the tensor.
        factors (Tensor): ``[C]``, of its input channels.
    """
    index = free.inputs[reader].to(factors.device) - 1
    ordered = torch.empty_like(factors, dtype=torch.float64)
    ordered[index] = factors.double()
    apply_factors(model, free, ordered)
