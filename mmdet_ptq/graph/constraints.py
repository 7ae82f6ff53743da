# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which channels have to be scaled alike, and which not at all."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from ..layers import InputLayerNorm
from ..structures import Port
from ..surgery import out_channels

#: labels of a number that is always zero, and of one that is not to change
ZERO, FIXED = 0, 1
NORMS = (nn.LayerNorm, nn.GroupNorm)


@dataclass
class Constraints:
    """What recorded forwards say of the factors of output channels.

    Every output channel of a layer or norm has a label. Its factor s > 0
    divides whatever carries the label.

    Attributes:
        labels (dict[str, Tensor]): Of the output channels of each module,
            int64 ``(C, )``.
        pinned (dict[int, str]): Labels whose factor is 1: a sentence each.
        alike (list[tuple[int, int, int]]): Two labels and 1 if they have
            one factor, -1 if one is the inverse of the other's.
        reads (dict[str, Tensor]): Labels of the input channels of layers.
        ports (dict[Port, Tensor]): Labels at the inputs of products, of as
            many axes as these have, those of size 1 where all are the same.
        values (set[int]): Labels that go through the values of an attention.
        added (dict[int, str]): Labels that go into sums: a sentence each.
    """

    labels: dict[str, Tensor]
    pinned: dict[int, str] = field(default_factory=dict)
    alike: list[tuple[int, int, int]] = field(default_factory=list)
    reads: dict[str, Tensor] = field(default_factory=dict)
    ports: dict[Port, Tensor] = field(default_factory=dict)
    values: set[int] = field(default_factory=set)
    added: dict[int, str] = field(default_factory=dict)

    def pin(self, labels: Tensor, why: str) -> None:
        """Says that channels cannot be scaled; the first reason stays."""
        for label in labels.unique().tolist():
            if label > FIXED:
                self.pinned.setdefault(label, why)

    def add(self, labels: Tensor, why: str) -> None:
        """Says that channels go into a sum; the first reason stays."""
        for label in labels.unique().tolist():
            if label > FIXED:
                self.added.setdefault(label, why)

    def tie(self, one: Tensor, other: Tensor, power: int = 1) -> None:
        """Says that labels have the same factors, or inverse ones.

        Args:
            one (Tensor): Labels.
            other (Tensor): Labels, of the same shape.
            power (int): 1 or -1.
        """
        pairs = torch.stack([one.flatten(), other.flatten()], 1).long()
        for a, b in pairs.unique(dim=0).tolist():
            if ZERO not in (a, b) and (a != b or (power < 0 and a > FIXED)):
                self.alike.append((a, b, power))

    def read(self, layer: str, labels: Tensor) -> None:
        """Notes what a layer reads; its calls have to agree.

        Args:
            layer (str): Its name.
            labels (Tensor): Of its input channels, ``(C, )``.
        """
        known = self.reads.setdefault(layer, labels)
        self.tie(known, labels)
        # a channel that was zero in one call need not be in another
        self.reads[layer] = torch.where(known == ZERO, labels, known)

    def arrive(self, port: Port, labels: Tensor) -> None:
        """Notes what arrives at an input of a product, as :meth:`read`."""
        known = self.ports.setdefault(port, labels)
        if known.shape != labels.shape:
            self.pin(known, f'{port[0]} reads it in several shapes')
            self.pin(labels, f'{port[0]} reads it in several shapes')
        else:
            self.tie(known, labels)


def constraints_of(
    modules: dict[str, nn.Module], is_leaf: Callable[[nn.Module], bool]
) -> Constraints:
    """Without any forward.

    Args:
        modules (dict[str, nn.Module]): Of the model, by name.
        is_leaf (Callable): Whether a module is a quantizable layer.
    """
    labels, first = {}, FIXED + 1
    for name, module in modules.items():
        channels = _channels(module, is_leaf)
        if channels:
            labels[name] = torch.arange(first, first + channels)
            first += channels
    return Constraints(labels)


def _channels(module: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> int:
    """Output channels that a module has a factor for each; 0: none."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return out_channels(module) if is_leaf(module) else 0
    # layers may be twins by now
    norm = type(module) in NORMS or isinstance(module, InputLayerNorm)
    if norm or is_batch_norm(module):
        weight = module.weight
        return len(weight) if weight is not None and weight.dim() == 1 else 0
    return 0


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm on stored statistics and nothing more."""
    return (
        isinstance(module, _BatchNorm)
        and type(module).forward in (_BatchNorm.forward, SyncBatchNorm.forward)
        and module.running_mean is not None
        and not module.training
    )
