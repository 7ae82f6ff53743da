# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What learners have in common."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ....layers import QuantLayer
from ....quantizers import BaseQuantizer


class Learner(ABC):
    """Something that is learned for one unit at a time.

    Attributes:
        weights (bool): Whether it makes the unit's quantized weights; of
            such learners a pass can have one.
    """

    weights = False

    @abstractmethod
    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """Puts what is learned in place of what is fixed.

        Args:
            layers (dict[str, QuantLayer]): Layers of the unit.
            acts (list[BaseQuantizer]): Activation quantizers that no
                earlier unit reads.
            iters (int): How many steps will follow.

        Returns:
            list[dict]: Parameter groups: ``params``, ``lr`` and whether
            the rate falls to zero along a ``cosine``.
        """

    def check_weight(self, name: str, kind: type[BaseQuantizer]) -> None:  # noqa: B027
        """Refuses weights that it cannot learn.

        Args:
            name (str): Name of the layer, for the message.
            kind (type): Class of the weight's quantizer.

        Raises:
            QuantConfigError: Says what to do.
        """

    def penalty(self, progress: float) -> Tensor | float:
        """A term of the loss; ``progress`` runs from 0 to 1."""
        return 0.0

    @abstractmethod
    def harden(self) -> None:
        """Fixes what was learned in its deployed form."""


def with_weights(layers: dict[str, QuantLayer]) -> list[QuantLayer]:
    """Layers of a unit that have weights of their own to quantize."""
    return [
        m
        for m in layers.values()
        if m.weight_quantizer is not None and not m.tied
    ]
