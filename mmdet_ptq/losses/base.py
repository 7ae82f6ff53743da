# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every loss promises: it says by its base class what it looks at."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..checks import number
from ..errors import QuantConfigError
from ..registry import LOSSES, build_from
from ..structures import DetectionOutputs

Target = dict[str, Tensor]
Outputs = Sequence[DetectionOutputs | Tensor]
#: what a gradient is taken of
OF = dict(type='DetectionLoss')


class Loss(ABC):
    """A distance of a quantized detector from the float one.

    Write a subclass of :class:`LocalLoss`, :class:`GradientWeighted` or
    :class:`GlobalLoss`.

    Args:
        weight (float): Factor of the loss, not negative. Defaults to 1.

    Raises:
        ValueError: If ``weight`` is negative or no number.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = number('weight', weight)

    @abstractmethod
    def __call__(self, *args: Any) -> Tensor:
        """A scalar; its subclasses say what it is called with."""


class LocalLoss(Loss):
    """A loss on the output of a unit."""

    @abstractmethod
    def __call__(
        self,
        outputs: list[Tensor],
        targets: list[Tensor],
        weights: list[Tensor],
    ) -> Tensor:
        """The loss of one sample.

        Args:
            outputs (list[Tensor]): Of the quantized unit, one for each call
                and output.
            targets (list[Tensor]): Of the float unit, each of the shape of
                its output.
            weights (list[Tensor]): What :meth:`GradientWeighted.weigh`
                gave, each of the shape of its output; empty where no loss
                is such a one.

        Returns:
            Tensor: A scalar, differentiable in ``outputs``.
        """


class GradientWeighted(LocalLoss):
    """A local loss with weights from the gradient of a global one.

    The gradient is taken at the unit's output, once, before the unit is
    optimised.

    Args:
        of (dict): The global loss that is differentiated.
            Defaults to ``dict(type='DetectionLoss')``.
        weight (float): Factor of the loss, not negative. Defaults to 1.

    Raises:
        ValueError: If ``weight`` is negative or no number.
    """

    def __init__(self, of: dict = OF, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.of = of

    def build_of(self, where: str) -> 'GlobalLoss':
        """A new object of the loss that is differentiated.

        Args:
            where (str): The place of this loss, for messages.

        Returns:
            GlobalLoss: The loss.

        Raises:
            QuantConfigError: If ``of`` is no global loss.
        """
        return build_loss(self.of, f'{where}.of', GlobalLoss)

    @abstractmethod
    def weigh(self, gradient: Tensor, mean_square: float) -> Tensor:
        """Weights of the errors of one output.

        Args:
            gradient (Tensor): g, of the shape of the output.
            mean_square (float): Mean of ``g^2`` over the calibration set.

        Returns:
            Tensor: Of the same shape.
        """


class GlobalLoss(Loss):
    """A loss on the raw outputs of the detector.

    Attributes:
        reads_masks (bool): Whether outputs of mask heads change it. Where
            they do not, these heads need not be run.
    """

    reads_masks: bool = True

    @abstractmethod
    def targets(self, outputs: Outputs) -> list[Target]:
        """Constants of the float model.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): Of the float
                model, on one image.

        Returns:
            list[dict[str, Tensor]]: One for each output.
        """

    @abstractmethod
    def __call__(self, outputs: Outputs, targets: Sequence[Target]) -> Tensor:
        """The loss of one image.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): Of the quantized
                model, in the order of ``targets``.
            targets (Sequence[dict]): What :meth:`targets` gave.

        Returns:
            Tensor: A scalar, differentiable in ``outputs``.
        """

    def parts(
        self, outputs: Outputs, targets: Sequence[Target]
    ) -> dict[str, float]:
        """What the loss is made of, for logs; by default nothing.

        Args:
            outputs (Sequence[DetectionOutputs | Tensor]): As for a call.
            targets (Sequence[dict]): As for a call.

        Returns:
            dict[str, float]: Numbers by name.
        """
        return {}


def build_loss(cfg: dict, where: str, kind: type[Loss] = Loss) -> Any:
    """Builds a loss from a config dict.

    Args:
        cfg (dict): ``type`` and keyword arguments.
        where (str): The place in ``quant_cfg``, for messages.
        kind (type): What kind of loss is wanted there. Defaults to any.

    Returns:
        Loss: A new object.

    Raises:
        QuantConfigError: On an unknown type or argument, a value that the
            class refuses, or a loss of another kind.
    """
    loss = build_from(LOSSES, cfg, where)
    if not isinstance(loss, kind):
        raise QuantConfigError(
            f'{where}: {cfg["type"]} is no {kind.__name__}; its class has to '
            f'be a subclass of mmdet_ptq.losses.{kind.__name__}'
        )
    return loss
