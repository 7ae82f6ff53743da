# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rows of the float inputs of layers, of a few places on each image."""

from collections.abc import Collection
from itertools import chain

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from ...calibration import Images, Session, observing
from ...detectors import adapter_for
from ...errors import NumericError
from ...layers import float_mode
from ...structures import Port
from .grids import Levels

Rows = dict[int, dict[str, list[tuple[int, Tensor]]]]
"""Of each image and layer, pyramid level and rows of each call"""


def may_scale(session: Session, group: list[Port]) -> bool:
    """Whether the layers of a group can take scaled inputs.

    Args:
        session (Session): The running quantization.
        group (list[Port]): Ports that share a quantizer.

    Returns:
        bool: If it has one grid for all channels, and all are convolutions
        or linear layers without groups and with a weight of their own.
    """
    layers = [session.layers[name] for name, _ in group]
    grain = layers[0].act_quantizers[group[0][1]].granularity
    return grain.kind == 'tensor' and all(
        port == 'input'
        and layer.weight_axis is not None
        and getattr(layer, 'groups', 1) == 1
        and not layer.tied
        for (_, port), layer in zip(group, layers, strict=True)
    )


def sample_rows(session: Session, names: Collection[str], most: int) -> Rows:
    """Rows of the float inputs of some layers, of all ranks.

    Args:
        session (Session): The running quantization.
        names (Collection[str]): Names of the layers.
        most (int): How many rows of a call, of an image.

    Returns:
        Rows: On the CPU. Inputs that layers scale themselves are scaled.
    """
    layers = session.layers
    numbers = {name: i for i, name in enumerate(session.graph.layers)}
    found: Rows = {}
    with session.cache() as cache, float_mode(session.model):
        adapter = adapter_for(session.model, session.graph, False)
        images = Images(session, cache, adapter, [])
        for j in images.mine:
            mine = found.setdefault(j, {})

            def see(
                name: str,
                port: str,
                level: int,
                x: Tensor,
                j: int = j,
                mine: dict = mine,
            ) -> None:
                calls = mine.setdefault(name, [])
                flat = x.movedim(layers[name].act_axis, -1)
                flat = flat.reshape(-1, flat.shape[-1])
                rng = session.rng(j, numbers[name], len(calls))
                drawn = torch.randperm(
                    len(flat), generator=rng, device=rng.device
                )
                rows = flat[drawn[:most].to(flat.device)]
                calls.append((level, rows.float().cpu()))

            chosen = {n: layers[n] for n in names}
            with observing(chosen, see, quantized=False):
                images.run(j)
    gathered = all_gather_object(found)
    return dict(sorted(chain(*(part.items() for part in gathered))))


def levels_of(
    seen: Rows,
    name: str,
    half: int | None,
    apart: bool,
    device: torch.device,
) -> Levels:
    """Rows of one layer.

    Args:
        seen (Rows): From :func:`sample_rows`.
        name (str): Name of the layer.
        half (int, optional): Of every other image: of the even ones (0) or
            the odd ones (1). None takes all.
        apart (bool): Whether pyramid levels are kept apart.
        device (torch.device): Where they are wanted.

    Returns:
        list[Tensor]: ``[T, C]`` of each level, none if a level has no row.

    Raises:
        NumericError: If there is NaN or Inf.
    """
    parts = list(by_level(seen, name, half, apart, device).values())
    return parts if all(len(part) for part in parts) else []


def by_level(
    seen: Rows,
    name: str,
    half: int | None,
    apart: bool,
    device: torch.device,
) -> dict[int, Tensor]:
    """As :func:`levels_of`, by number of the pyramid level, 0 for all."""
    found: dict[int, list[Tensor]] = {}
    for j, calls in seen.items():
        if half is None or j % 2 == half:
            for level, rows in calls.get(name, []):
                found.setdefault(level if apart else 0, []).append(rows)
    parts = {k: torch.cat(found[k]).to(device) for k in sorted(found)}
    if not all(bool(part.isfinite().all()) for part in parts.values()):
        raise NumericError(
            f'{name}: NaN or Inf in its input during calibration; the '
            'float model overflows on an image'
        )
    return parts
