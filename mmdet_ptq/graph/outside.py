# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What multiplies without being a layer, and so stays float."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .record import Trace, tensors_in
from .vocabulary import CONSTANT, MULTIPLIES, canonical, torch_name


class Outside:
    """Notes products, and weights that are read past their layer.

    Args:
        trace (Trace): Where it writes; ``trace.modules`` is read.
        is_leaf (Callable): Whether a module is a quantizable layer.
    """

    def __init__(
        self, trace: Trace, is_leaf: Callable[[nn.Module], bool]
    ) -> None:
        self.trace = trace
        self.owners = {
            id(p): name
            for name, module in trace.modules.items()
            if is_leaf(module)
            for p in module.parameters(recurse=False)
        }

    def note(
        self, func: Callable, given: Any, result: Any, where: str, live: bool
    ) -> None:
        """Looks at a function that no layer called.

        Args:
            func (Callable): The function.
            given (Any): Its arguments.
            result (Any): What it returned.
            where (str): Name of the innermost module that runs.
            live (bool): Whether an argument comes from the images; what is
                made of constants alone could be computed beforehand.
        """
        name = canonical(torch_name(func))
        if name in CONSTANT or not _floating(result):
            return
        for tensor in tensors_in(given):
            layer = self._owner(tensor)
            if layer is not None:
                self.trace.borrowed.setdefault(layer, where)
        if live and name in MULTIPLIES:
            found = self.trace.products.setdefault(where, [])
            if torch_name(func) not in found:
                found.append(torch_name(func))

    def _owner(self, tensor: Tensor) -> str | None:
        """The layer whose parameter a tensor is, or is a view of."""
        base = None if tensor.is_inference() else tensor._base
        return self.owners.get(id(tensor), self.owners.get(id(base)))


def _floating(result: Any) -> bool:
    return any(t.is_floating_point() for t in tensors_in(result))
