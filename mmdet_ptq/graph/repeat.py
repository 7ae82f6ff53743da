# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Running what moves numbers again, on other numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .vocabulary import FACTORS, SHAPE, canonical

_SHIFT = 2.0**23


@dataclass(frozen=True)
class _Slot:
    """Stands for the i-th tensor of a call."""

    i: int


@dataclass(frozen=True)
class Repeat:
    """A call whose floating tensors can be replaced.

    Attributes:
        function (Callable): What was called.
        args (tuple): Its arguments. In place of floating tensors there are
            their numbers, in the order of the arguments; indices and masks
            are copies on the CPU.
        kwargs (dict): Likewise.
    """

    function: Callable
    args: tuple
    kwargs: dict

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Calls it again.

        Args:
            tensors (Sequence[Tensor]): In the order of the arguments, of
                the shapes that they had, on the CPU; those that were no
                floating ones are passed over.
        """
        put = lambda i, _: tensors[i]  # noqa: E731
        args, kwargs = _mapped((self.args, self.kwargs), put, _Slot)
        return self.function(*args, **kwargs)

    def moved(self, labels: Sequence[Tensor], sure: bool) -> list[Tensor]:
        """Where it moves numbers to.

        Args:
            labels (Sequence[Tensor]): Floats that are whole numbers from 0
                to 2^23, of the shapes of the tensors.
            sure (bool): Whether it is known to make no numbers.

        Returns:
            list[Tensor]: Labels of what it returns, 0 where it put zeros;
            empty if it does not run on labels, or does more than that.
        """
        found = self._on(labels)
        if sure or not found:
            return found
        # what other numbers do not change is no number of the input
        others = self._on([t + _SHIFT for t in labels])
        for one, other in zip(found, others, strict=True):
            moved = other - one == _SHIFT
            if not bool((moved | ((one == 0) & (other == 0))).all()):
                return []
        return found

    def _on(self, labels: Sequence[Tensor]) -> list[Tensor]:
        try:
            with torch.no_grad():
                return list(_tensors(self(labels)))
        except (RuntimeError, TypeError, ValueError, IndexError):
            return []  # e.g. for labels of another dtype


def _tensors(made: Any) -> Iterator[Tensor]:
    for one in made if isinstance(made, list | tuple) else (made,):
        if isinstance(one, Tensor):
            yield one


def repeat_of(
    name: str, function: Callable, args: tuple, kwargs: dict
) -> Repeat | None:
    """What is needed to run a call again.

    Args:
        name (str): Of the op.
        function (Callable): What was called.
        args (tuple): Its arguments.
        kwargs (dict): Its arguments by name.

    Returns:
        Repeat, optional: None for what does more than move numbers, or
        multiply them, and for what is given no floating numbers: pasting a
        mask into an image, which must not be copied for each mask.
    """
    if canonical(name) not in SHAPE | FACTORS:
        return None
    leaves, _ = tree_flatten((args, kwargs))
    if not any(
        isinstance(t, Tensor) and t.is_floating_point() for t in leaves
    ):
        return None

    def kept(i: int, tensor: Tensor) -> Any:
        if tensor.is_floating_point():
            return _Slot(i)
        return tensor.detach().to('cpu', copy=True)

    return Repeat(function, *_mapped((args, kwargs), kept, Tensor))


def _mapped(item: Any, change: Callable[[int, Any], Any], kind: type) -> Any:
    """A nested structure with what is of a kind replaced, in order."""
    number = -1

    def walk(part: Any) -> Any:
        nonlocal number
        if isinstance(part, kind):
            number += 1
            return change(number if kind is Tensor else part.i, part)
        if isinstance(part, dict):
            return {key: walk(value) for key, value in part.items()}
        if isinstance(part, (list, tuple)) and len(part):
            kept = list if isinstance(part, list) else tuple
            return kept(map(walk, part))
        return part

    return walk(item)
