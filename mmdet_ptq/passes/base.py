# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every pass promises to the engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..calibration import Session
from ..errors import QuantConfigError


class BasePass(ABC):
    """One step of a quantization.

    A pass reads and writes the session and nothing else; it does not ask
    which detector it has. Whatever it changes in the float model it changes
    by :meth:`Session.edit`, so that the artefact can be rebuilt.

    Attributes:
        needs (frozenset[str]): Statistics that an ``Observe`` before it has
            to gather: ``'ranges'`` (observers of activations), ``'means'``
            (of the inputs of layers).
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self, earlier: Sequence['BasePass']) -> None:
        """Finds what is wrong with its place, before the first forward.

        Args:
            earlier (Sequence[BasePass]): The passes before it.

        Raises:
            QuantConfigError: If a pass that it needs is not among them.
        """
        if self.needs and not any(p.gathers for p in earlier):
            name = type(self).__name__
            raise QuantConfigError(
                f'passes: {name} needs what Observe gathers; put '
                f"dict(type='Observe') before it"
            )

    @property
    def gathers(self) -> bool:
        """Whether it fills ``session.stats``."""
        return False

    def prepare(self, session: Session) -> None:  # noqa: B027
        """Finds what does not fit this model, before any pass has run.

        Args:
            session (Session): Quantizers are attached, nothing is observed.

        Raises:
            QuantConfigError: Names the layer, and what to do.
        """

    @abstractmethod
    def run(self, session: Session) -> None:
        """Does its work, without gradients unless it asks for them.

        Args:
            session (Session): The running quantization.
        """


def checked(passes: Sequence[object]) -> list[BasePass]:
    """Passes in an order that works.

    Args:
        passes (Sequence[object]): As built from a config.

    Returns:
        list[BasePass]: The same.

    Raises:
        QuantConfigError: If one is no pass, or is out of place.
    """
    found: list[BasePass] = []
    for one in passes:
        if not isinstance(one, BasePass):
            raise QuantConfigError(
                f'passes: {type(one).__name__} is registered as a pass but '
                'does not inherit from mmdet_ptq.passes.BasePass'
            )
        one.check(found)
        found.append(one)
    return found
