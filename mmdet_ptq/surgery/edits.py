# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Changes of a float model that can be made again when it is loaded."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from ..errors import PTQError
from ..registry import EDITS, build_from
from .fold import ensure_bias, fold_batch_norm, out_channels, remove_norm
from .modules import find_module
from .parts import part_for


class Edit(ABC):
    """One change of a model's structure.

    A subclass is a dataclass of plain JSON fields, registered in ``EDITS``.
    """

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Makes the change, numbers included.

        Args:
            model (nn.Module): The model, changed in place.

        Raises:
            PTQError: If the change does not fit the model, which is then
                left unchanged.
        """

    @abstractmethod
    def rebuild(self, model: nn.Module) -> None:
        """Gives a float model the structure that :meth:`apply` leaves.

        Computes no numbers: tensors are loaded afterwards.

        Args:
            model (nn.Module): As its config builds it, with earlier edits
                made; changed in place.

        Raises:
            PTQError: If the change does not fit the model.
        """

    def to_dict(self) -> dict[str, Any]:
        """Its registered name and fields, plain JSON types."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return dict(type=type(self).__name__, **named)


@EDITS.register_module()
@dataclass
class Decomposed(Edit):
    """A module whose inner products became layers of their own.

    Attributes:
        module (str): Name of the module.
    """

    module: str

    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`."""
        module = find_module(model, self.module)
        part = part_for(module)
        if part is None:
            raise PTQError(
                f'cannot take {self.module!r} apart: nothing is registered '
                f'for {type(module).__name__}'
            )
        module.__class__ = part
        module.split()

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`; the numbers change nothing."""
        self.apply(model)


@EDITS.register_module()
@dataclass
class FoldedNorm(Edit):
    """A batch norm that vanished into the layer before it.

    Attributes:
        norm (str): Name of the batch norm, now an identity.
        layer (str): Name of the layer.
        removed (nn.Module, optional): The batch norm as it was.
    """

    norm: str
    layer: str
    removed: nn.Module | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`; ``W' = W gamma / sqrt(var + eps)``."""
        self.removed = find_module(model, self.norm)
        fold_batch_norm(model, self.norm, self.layer)

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`."""
        self.removed = find_module(model, self.norm)
        layer = find_module(model, self.layer)
        ensure_bias(layer, out_channels(layer))
        remove_norm(model, self.removed)


@EDITS.register_module()
@dataclass
class AddedBias(Edit):
    """A bias of zeros, for a layer that had none.

    Attributes:
        layer (str): Name of the layer.
    """

    layer: str

    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`."""
        layer = find_module(model, self.layer)
        if 'bias' not in layer._parameters:
            raise PTQError(
                f'{self.layer!r} cannot have a bias: a '
                f'{type(layer).__name__} has none'
            )
        ensure_bias(layer, out_channels(layer))

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`."""
        self.apply(model)


def edits_of(found: Iterable[dict[str, Any]]) -> list[Edit]:
    """Reads :meth:`Edit.to_dict` of several edits back.

    Args:
        found (Iterable[dict]): In the order they were made.

    Returns:
        list[Edit]: To be rebuilt in that order.

    Raises:
        QuantConfigError: If one is of a kind that is not registered.
    """
    return [build_from(EDITS, cfg, 'edit') for cfg in found]
