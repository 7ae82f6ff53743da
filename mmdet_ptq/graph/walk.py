# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Walking along the tensors of a trace."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..structures import Op
from .record import Trace
from .vocabulary import (
    FIRST_ONLY,
    MIXING,
    MIXING_PARTS,
    NORMS,
    SHAPE,
    canonical,
)

NORM_CLASSES = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


class Walker:
    """Answers who made and who reads a value.

    Args:
        record (Trace): A recorded forward.
        is_leaf (Callable): Whether a module is a quantizable leaf.

    Attributes:
        calls (dict[str, list[Op]]): Calls of each quantizable layer, in
            order of the first.
        readers (dict[int, list[tuple[Op, int]]]): For each value the ops
            that read it and at which argument.
    """

    def __init__(
        self, record: Trace, is_leaf: Callable[[nn.Module], bool]
    ) -> None:
        self.record = record
        self.ops = record.ops
        self.values = record.values
        self.calls: dict[str, list[Op]] = {}
        self.readers: dict[int, list[tuple[Op, int]]] = defaultdict(list)
        layers = {n for n, m in record.modules.items() if is_leaf(m)}
        for op in record.ops:
            if op.module in layers:
                self.calls.setdefault(op.module, []).append(op)
            for place, number in enumerate(op.inputs):
                self.readers[number].append((op, place))
        self._kinds = [self._classify(op) for op in record.ops]

    def _classify(self, op: Op) -> str:
        module = self.record.modules[op.module] if op.module else None
        # a norm whose input is quantized is still a norm
        if op.module in self.calls and not isinstance(module, NORM_CLASSES):
            return 'layer'
        name = canonical(op.name)
        if (
            name in NORMS
            or isinstance(module, NORM_CLASSES)
            or (module is not None and name.endswith('norm'))
        ):
            return 'norm'
        if name in MIXING or any(part in name for part in MIXING_PARTS):
            return 'mixing'
        if module is not None and any(
            p.dim() > 1 and max(p.shape) < p.numel()
            for p in module.parameters(recurse=False)
        ):
            return 'mixing'
        return 'shape' if name in SHAPE else 'pointwise'

    def kind(self, op: Op) -> str:
        """One of ``layer norm mixing shape pointwise``."""
        return self._kinds[op.index]

    def producer(self, value: int) -> Op | None:
        """The op that made a value, None for inputs and constants."""
        index = self.values[value].producer
        return self.ops[index] if index >= 0 else None

    def carried(self, op: Op) -> list[int]:
        """Inputs whose numbers, not indices or masks, enter the result."""
        inputs: Iterable[int] = op.inputs
        if canonical(op.name) in FIRST_ONLY:
            inputs = op.inputs[:1]
        return [i for i in inputs if self.values[i].floating]

    def back(
        self,
        starts: Iterable[int],
        kinds: Iterable[str],
        accept: Callable[[Op], bool] = lambda op: True,
    ) -> list[Op]:
        """Goes against the flow through ops of the given kinds.

        Args:
            starts (Iterable[int]): Values to start from.
            kinds (Iterable[str]): Kinds of ops to pass through.
            accept (Callable): A further condition to pass an op.

        Returns:
            list[Op]: The ops where the walk ended, in execution order.
        """
        ends: dict[int, Op] = {}
        todo, seen = list(starts), set()
        while todo:
            number = todo.pop()
            if number in seen:
                continue
            seen.add(number)
            op = self.producer(number)
            if op is None:
                continue
            if self.kind(op) in kinds and accept(op):
                todo += self.carried(op)
            else:
                ends[op.index] = op
        return [ends[i] for i in sorted(ends)]

    def ahead(
        self, starts: Iterable[int], kinds: Iterable[str]
    ) -> list[tuple[Op, int]]:
        """Goes with the flow through ops of the given kinds.

        Args:
            starts (Iterable[int]): Values to start from.
            kinds (Iterable[str]): Kinds of ops to pass through.

        Returns:
            list[tuple[Op, int]]: The ops where the walk ended and the
            argument at which it arrived.
        """
        ends: dict[tuple[int, int], tuple[Op, int]] = {}
        todo, seen = list(starts), set()
        while todo:
            number = todo.pop()
            if number in seen:
                continue
            seen.add(number)
            for op, place in self.readers[number]:
                if self.kind(op) not in kinds:
                    ends[op.index, place] = (op, place)
                elif number in self.carried(op):
                    todo += op.outputs
        return [ends[key] for key in sorted(ends)]
