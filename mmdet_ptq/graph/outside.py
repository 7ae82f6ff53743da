# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What functions do that no layer does: multiply, and read weights."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import Tensor, nn

from .record import Trace, tensors_in
from .vocabulary import CONSTANT, FIRST_ONLY, MULTIPLIES, canonical


class Outside:
    """Notes products that stay float, and who reads a parameter.

    Args:
        trace (Trace): Where it writes.
        parameters (Iterable[Tensor]): Those of the model.
    """

    def __init__(self, trace: Trace, parameters: Iterable[Tensor]) -> None:
        self._trace = trace
        self._parameters = {id(p) for p in parameters}

    def note(
        self,
        function: str,
        given: Any,
        result: Any,
        caller: tuple[nn.Module, str],
        product: bool,
    ) -> None:
        """Looks at a function after it ran.

        Args:
            function (str): Its name.
            given (Any): Its arguments.
            result (Any): What it returned.
            caller (tuple[nn.Module, str]): The innermost module that runs,
                and its name.
            product (bool): Whether it counts where it multiplies: not in a
                layer, nor on constants alone, which could be computed
                beforehand.
        """
        name, made = canonical(function), list(tensors_in(result))
        if name in CONSTANT or not made:
            return
        module, where = caller
        read = tensors_in(given)
        for tensor in islice(read, 1) if name in FIRST_ONLY else read:
            if id(tensor) in self._parameters and not any(
                tensor is own for own in module._parameters.values()
            ):
                self._trace.reads.setdefault(id(tensor), where)
        floating = any(t.is_floating_point() for t in made)
        if product and floating and name in MULTIPLIES:
            found = self._trace.products.setdefault(where, [])
            if function not in found:
                found.append(function)
