# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bias correction from the mean of each input channel."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..layers import QuantLayer
from ..observers import fetch

# Sums are kept in whole multiples of 2^-20: adding integers gives the same
# result in any order, so ranks and resumed runs agree to the bit.
_UNIT = 2.0**20


class ChannelMeans:
    """Mean of every input channel of the layers whose bias is corrected.

    The output of a quantized weight is off by ``(Wq - W) * x``; its mean
    over positions is ``(Wq - W) * E[x]`` for each output channel, and a
    bias can take that away (Nagel et al., Data-Free Quantization, 2019,
    section 4.2, with measured instead of derived means). Borders padded
    with zeros are not told apart. A layer that is called several times in
    a forward is left alone: its one bias cannot serve pyramid levels whose
    means differ, and levels with small numbers would pay for large ones.

    Args:
        layers (dict[str, QuantLayer]): By name; those are used that have a
            bias and weight of their own, a weight quantizer, one call, and
            are conv2d or linear.
    """

    def __init__(self, layers: dict[str, QuantLayer]) -> None:
        self.layers = {
            n: m
            for n, m in layers.items()
            if isinstance(m, nn.Conv2d | nn.Linear)
            and m.weight_quantizer is not None
            and m.bias is not None
            and m.levels == 1
            and not m.tied
        }
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self._waiting: list[tuple[str, Tensor, int]] = []

    def observe(self, name: str, x: Tensor) -> None:
        """Adds the float input of one call, when its batch ends."""
        layer = self.layers.get(name)
        if layer is None or x.numel() == 0:
            return
        axis = layer.act_axis % x.dim()
        mean = x.mean([i for i in range(x.dim()) if i != axis])
        self._waiting.append((name, mean, x.numel() // x.shape[axis]))

    @property
    def waiting(self) -> list[Tensor]:
        """Means that the batch has brought, to be fetched with others."""
        return [mean for _, mean, _ in self._waiting]

    def settle(self, means: list[Tensor]) -> None:
        """Takes the batch in.

        Args:
            means (list[Tensor]): :attr:`waiting`, on the CPU.
        """
        waiting, self._waiting = self._waiting, []
        for (name, _, count), mean in zip(waiting, means, strict=True):
            total = (mean.double() * count * _UNIT).round().long()
            self._add(name, total, count)

    def end_batch(self) -> None:
        """Takes the batch in; a GPU is waited for once."""
        self.settle(fetch(self.waiting))

    def _add(self, name: str, total: Tensor, count: int) -> None:
        self.sums[name] = self.sums.get(name, 0) + total
        self.counts[name] = self.counts.get(name, 0) + count

    def for_unseen(self) -> 'ChannelMeans':
        """New means of the layers that have had no data."""
        self.end_batch()
        return ChannelMeans(
            {n: m for n, m in self.layers.items() if n not in self.sums}
        )

    def state_dict(self) -> dict:
        """Sums and counts on the CPU, to resume and to merge."""
        self.end_batch()
        return dict(sums=dict(self.sums), counts=dict(self.counts))

    def add(self, state: dict) -> None:
        """Adds the sums of another rank, or those before a stop."""
        for name, total in state['sums'].items():
            self._add(name, total, state['counts'][name])

    def shift(self, name: str, by: Tensor) -> None:
        """Renews the mean of a layer that has something added to its input.

        Args:
            name (str): Name of the layer; one that has no mean stays so.
            by (Tensor): ``[C]``, what is added.
        """
        self.end_batch()
        if name in self.sums:
            total = by.cpu().double() * self.counts[name] * _UNIT
            self.sums[name] = self.sums[name] + total.round().long()

    @torch.no_grad()
    def correct(self, names: Collection[str] | None = None) -> None:
        """Has each bias take the mean output error away.

        Args:
            names (Collection[str], optional): Of these layers alone.
        """
        self.end_batch()
        for name, layer in self.layers.items():
            # a pass may have left the weight float since then
            if name not in self.sums or layer.weight_quantizer is None:
                continue
            if names is not None and name not in names:
                continue
            mean = self.sums[name].double() / _UNIT / self.counts[name]
            weight = layer.weight
            error = layer.quantized_weight().double() - weight.double()
            shift = mean_output(layer, error, mean.to(weight.device))
            layer.shift_bias(-shift.to(layer.bias.dtype))


def mean_output(layer: nn.Module, weight: Tensor, mean: Tensor) -> Tensor:
    """Output of a layer on a constant input, away from borders.

    Args:
        layer (nn.Module): A Conv2d or Linear.
        weight (Tensor): Of the shape of its weight.
        mean (Tensor): Shape (in_channels, ).

    Returns:
        Tensor: Shape (out_channels, ).
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    taps = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    taps = taps.unflatten(0, (groups, -1))
    return (taps @ mean.reshape(groups, -1, 1)).flatten()
