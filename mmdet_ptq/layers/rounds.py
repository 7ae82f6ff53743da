# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where the count of pyramid levels begins, and whether it came out even."""

import warnings
from typing import Any

from torch import nn

from ..context import current
from .base import QuantLayer, quant_layers


class Rounds:
    """Begins and checks the count of levels in each call of a module.

    Args:
        layers (dict[str, QuantLayer]): Twins in the module, by name.
    """

    def __init__(self, layers: dict[str, QuantLayer]) -> None:
        self.layers = layers

    def begin(self, module: nn.Module, args: tuple) -> None:
        """Forward pre-hook of a part of a detector."""
        forward = current()
        for layer in self.layers.values():
            if layer.by_head:
                forward.begin(layer.call_key)

    def end(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook of a part, called after an exception too."""
        forward = current()
        for layer in self.layers.values():
            if layer.by_head:
                forward.end(layer.call_key)

    def check_part(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook of a part: looks at levels that began with its call.

        Others are not complete before the detector's own call ends.
        """
        _tell_odd({n: m for n, m in self.layers.items() if m.by_head})

    def check(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook of the model: looks at all levels."""
        _tell_odd(self.layers)


def _tell_odd(layers: dict[str, QuantLayer]) -> None:
    """Tells of levels whose ranges may be the wrong ones."""
    forward = current()
    odd = [
        (name, layer.levels)
        for name, layer in layers.items()
        if layer.has_level_ranges()
        and layer.quantize_act
        and not forward.is_round(layer.call_key, layer.levels)
    ]
    if odd:
        name, levels = odd[0]
        more = f' (and {len(odd) - 1} more layers)' if odd[1:] else ''
        warnings.warn(
            f'{name}{more}: it was not called once for each of the '
            f'{levels} pyramid levels that it has ranges for; the first '
            'call gets the range of the first level, and so on. Give it '
            'all levels, or quantize without per_level',
            stacklevel=3,
        )


def follow_rounds(model: nn.Module) -> None:
    """Watches the count of levels in a model and in each of its parts.

    A part is a direct child of the model: a neck, a head.

    Args:
        model (nn.Module): A model of twins.
    """
    for name, part in model.named_children():
        if isinstance(part, QuantLayer):
            continue
        layers = {f'{name}.{n}': m for n, m in quant_layers(part).items()}
        if layers:
            rounds = Rounds(layers)
            part.register_forward_hook(rounds.check_part)
            part.register_forward_pre_hook(rounds.begin)
            part.register_forward_hook(rounds.end, always_call=True)
    # before the context of the forward is closed
    model.register_forward_hook(
        Rounds(quant_layers(model)).check, prepend=True
    )
