# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The range of each tensor of a block."""

from typing import Any

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from ...calibration import Sample, Session, UnitView, observing
from ...context import forward_context
from ...layers import QuantLayer, float_mode
from .component import Held


def ends_of(
    session: Session, view: UnitView, samples: dict[int, Sample], cache: Any
) -> dict[Held, tuple[Tensor, Tensor]]:
    """Least and largest value of each row, in the float block.

    Args:
        session (Session): The running quantization.
        view (UnitView): The block.
        samples (dict[int, Sample]): What it takes on each image.
        cache (ActivationCache): Holds that.

    Returns:
        dict[Held, tuple[Tensor, Tensor]]: ``[K]`` each, those of pyramid
        levels one after the other, of all ranks; 0 where none was seen.
    """
    seen: dict[tuple[str, str, int], list[tuple[Tensor, Tensor]]] = {}

    def see(name: str, port: str, level: int, x: Tensor) -> None:
        quantizers = view.layers[name].act_quantizers
        if port not in quantizers:
            return
        quantizer = quantizers[port]
        rows = quantizer.granularity.rows(x)
        if rows.numel():
            at = level if quantizer.num_levels() > 1 else 0
            ends = (rows.amin(1).float(), rows.amax(1).float())
            seen.setdefault((name, port, at), []).append(ends)

    with (
        torch.no_grad(),
        float_mode(session.layers),
        observing(view.layers, inputs=see),
    ):
        for sample in samples.values():
            with forward_context(sample.images):
                for i, levels in enumerate(sample.levels):
                    view(levels, cache.fetch(sample.inputs[i]))
    merged = _merged(seen)
    found: dict[Held, tuple[Tensor, Tensor]] = {}
    for name, layer in view.layers.items():
        found.update(_of_layer(name, layer, merged, session.device))
    return found


def _merged(seen: dict) -> dict[tuple[str, str, int], tuple[Tensor, Tensor]]:
    """Of all calls of all ranks."""
    mine = {
        key: (
            torch.stack([low for low, _ in some]).amin(0).cpu(),
            torch.stack([high for _, high in some]).amax(0).cpu(),
        )
        for key, some in seen.items()
    }
    found: dict = {}
    for part in all_gather_object(mine):
        for key, (low, high) in part.items():
            known = found.get(key, (low, high))
            found[key] = (low.minimum(known[0]), high.maximum(known[1]))
    return found


def _of_layer(
    name: str, layer: QuantLayer, merged: dict, device: torch.device
) -> dict[Held, tuple[Tensor, Tensor]]:
    found: dict[Held, tuple[Tensor, Tensor]] = {}
    if layer.weight_quantizer is not None:
        weight = layer.weight.detach().float()
        rows = layer.weight_quantizer.granularity.rows(weight)
        found[name, 'weight'] = (rows.amin(1), rows.amax(1))
    for port, quantizer in layer.act_quantizers.items():
        levels = quantizer.num_levels()
        count = quantizer.num_rows() // levels
        none = (torch.zeros(count), torch.zeros(count))
        parts = [merged.get((name, port, at), none) for at in range(levels)]
        low, high = (torch.cat(ends) for ends in zip(*parts, strict=True))
        found[name, port] = (low.to(device), high.to(device))
    return found
