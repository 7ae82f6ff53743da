# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Labels of channels, carried through a recorded forward."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from ..layers import twin_class
from ..structures import Op
from .constraints import FIXED, ZERO, Constraints
from .sharing import Sharing
from .vocabulary import (
    ADD,
    FACTORS,
    HOMOGENEOUS,
    HOMOGENEOUS_MAPS,
    IN_PLACE,
    MOVES,
    SHAPE,
    canonical,
)
from .walk import Walker


class ChannelFlow:
    """Follows the output channels of layers and norms to their readers.

    A label goes with each number of a tensor. What moves numbers is run
    again on the labels, so that reshaped, padded, rolled and parted tensors
    need no rules of their own. What is no homogeneous function of its input
    pins all that it reads.

    Args:
        walker (Walker): The trace.
        ports (Callable): Names of the quantizable inputs of a layer.
        folds (Collection[str]): Batch norms that vanish into the layer
            before them.
        sharing (Sharing): Layers that are not to be changed.
        found (Constraints): Where it writes.
    """

    def __init__(
        self,
        walker: Walker,
        ports: Callable[[nn.Module], tuple[str, ...]],
        folds: Collection[str],
        sharing: Sharing,
        found: Constraints,
    ) -> None:
        self.walker = walker
        self.modules = walker.record.modules
        self.ports = ports
        self.folds = folds
        self.sharing = sharing
        self.found = found
        #: labels by value, of its number of axes, of size 1 where all are
        #: the same; values without any are missing
        self.labels: dict[int, Tensor] = {}

    def follow(self) -> None:
        """Goes through all ops, in order."""
        for op in self.walker.ops:
            self._op(op)
        outputs = set(self.walker.record.outputs)
        for value, labels in self.labels.items():
            if value in outputs:
                self.found.pin(labels, 'it is an output of the detector')
            elif value in self.walker.record.taken:
                self.found.pin(labels, 'its numbers are read by Python')
            elif not self.walker.readers[value]:
                self.found.pin(labels, 'nothing that is known reads it')

    def _op(self, op: Op) -> None:
        module = self.modules[op.module] if op.module else None
        if self.walker.kind(op) == 'layer' and module is not None:
            self._layer(op, module)
            return
        read = [i for i in op.inputs if i in self.labels]
        if read and not (op.module in self.folds and self._keep(op)):
            self._function(op)
        if op.module in self.found.labels and op.module not in self.folds:
            self._made(op, -1 if isinstance(module, nn.LayerNorm) else 1)

    def _function(self, op: Op) -> None:
        name, why = canonical(op.name), ''
        if op.module:
            why = self._why_not(op.module)
            home = type(self.modules[op.module]).__module__
            # a class of another package may only be called the same
            if home.partition('.')[0] not in ('torch', 'mmcv', 'mmengine'):
                why = why or f'{op.module} is a {op.name} of {home}'
        ways = (
            (HOMOGENEOUS | IN_PLACE, self._keep),
            (SHAPE, self._move),
            (HOMOGENEOUS_MAPS, self._maps),
            (FACTORS, self._times),
            (ADD, self._plus),
        )
        for names, way in ways:
            if name in names and not why and way(op):
                return
        # the module's class, or the function
        self._pin(op, why or f'{op.name} reads it')

    # -- layers ---------------------------------------------------------
    def _layer(self, op: Op, layer: nn.Module) -> None:
        names = self.ports(layer)
        if names == ('a', 'b'):
            self._product(op)
            return
        mine = self.found.labels.get(op.module)
        why = self._why_not(op.module)
        if mine is None:
            why = f'{op.module} is a {type(layer).__name__}'
        elif len(op.outputs) != 1 or len(op.inputs) != 1:
            why = why or f'{op.module} reads something else, too'
        if why or mine is None:
            self._pin(op, why)
            if mine is not None:
                self.found.pin(mine, why)
            return
        axis = twin_class(layer).act_axis
        if op.inputs[0] in self.labels:
            vector = self._vector(op.inputs[0], axis)
            if vector is None:
                self._pin(op, f'{op.module} has it along other axes')
            else:
                self.found.read(op.module, vector)
        else:
            size = self._shape(op.inputs[0])[axis]
            self.found.read(op.module, torch.full((size,), FIXED))
        self._made(op, axis)

    def _why_not(self, name: str) -> str:
        """Why weight and bias of a module are not to be changed."""
        module = self.modules[name]
        if name in self.sharing.why:
            return f'of {name}, {self.sharing.why[name]}'
        if 'forward' in vars(module):
            return f'the forward of {name} was replaced'
        if module._forward_pre_hooks or module._forward_hooks:
            return f'a hook runs at {name}'
        return ''

    def _made(self, op: Op, axis: int) -> None:
        """Gives what a layer or norm made the labels of its channels."""
        mine = self.found.labels[op.module]
        why = self._why_not(op.module) or self.sharing.norms.get(op.module)
        shape = self._shape(op.outputs[0])
        if why or len(op.outputs) != 1 or shape[axis] != len(mine):
            self.found.pin(mine, why or f'{op.module} has other axes')
            return
        new = [1] * len(shape)
        new[axis] = len(mine)
        self.labels[op.outputs[0]] = mine.view(new)

    def _vector(self, value: int, axis: int) -> Tensor | None:
        """Labels along an axis, if they are the same on all others."""
        labels = self.labels[value]
        axis %= labels.dim()
        others = [i for i in range(labels.dim()) if i != axis]
        most = labels.amax(others, keepdim=True) if others else labels
        if not bool(((labels == most) | (labels == ZERO)).all()):
            return None
        return most.flatten().expand(self._shape(value)[axis])

    def _product(self, op: Op) -> None:
        """A product: channels are contracted, or go through it."""
        read = [i for i in op.inputs if i in self.labels]
        if len(op.inputs) != 2 or len(op.outputs) != 1:
            self._pin(op, f'{op.module} reads it')
            return
        a, b = (self._of(i) for i in op.inputs)
        if not read or min(a.dim(), b.dim()) < 2:
            self._pin(op, f'{op.module} reads it')
        elif a.shape[-1] == 1 and b.shape[-2] == 1:
            if len(read) == 2:
                self._pin(op, f'{op.module} multiplies it with another')
                return
            (one,) = read
            labels = self.labels[one]
            self.labels[op.outputs[0]] = labels
            self.found.values.update(labels.unique().tolist())
            port = 'a' if one == op.inputs[0] else 'b'
            self.found.arrive((op.module, port), labels)
        elif a.shape[-2] == 1 and b.shape[-1] == 1:
            pair = torch.broadcast_tensors(a[..., 0, :], b[..., 0])
            self.found.tie(*pair, power=-1)
            self.found.arrive((op.module, 'a'), a)
            self.found.arrive((op.module, 'b'), b)
        else:
            self._pin(op, f'{op.module} has it along other axes')

    # -- functions ------------------------------------------------------
    def _keep(self, op: Op) -> bool:
        """Every number stays where it is."""
        given, made, *rest = op.inputs[0], *op.outputs
        if (
            # written in place, what it is a view of is written too
            any(self.walker.readers[i] for i in rest)
            or given not in self.labels
            or any(i in self.labels for i in op.inputs[1:])
            or self._shape(given) != self._shape(made)
            or not self.walker.values[made].floating
        ):
            return False
        self.labels[made] = self.labels[given]
        return True

    def _times(self, op: Op) -> bool:
        """A product with numbers that are not scaled."""
        read = [i for i in op.inputs if i in self.labels]
        repeat = self.walker.record.repeats.get(op.index)
        divides = canonical(op.name) not in ('mul', 'multiply')
        if (
            len(read) != 1
            or len(op.outputs) != 1
            or repeat is None
            or repeat.kwargs
            or (divides and read[0] != op.inputs[0])
            or not self.walker.values[op.outputs[0]].floating
        ):
            return False
        labels = self.labels[read[0]]
        missing = len(self._shape(op.outputs[0])) - labels.dim()
        self.labels[op.outputs[0]] = labels[(None,) * missing]
        return True

    def _plus(self, op: Op) -> bool:
        """A sum of two that are scaled alike."""
        if (
            len(op.inputs) != 2
            or len(op.outputs) != 1
            or not all(i in self.labels for i in op.inputs)
            or not self.walker.values[op.outputs[0]].floating
        ):
            return False
        dims = len(self._shape(op.outputs[0]))
        one, other = (self.labels[i] for i in op.inputs)
        one, other = torch.broadcast_tensors(
            one[(None,) * (dims - one.dim())],
            other[(None,) * (dims - other.dim())],
        )
        self.found.tie(one, other)
        self.found.add(torch.cat([one, other]), f'{op.name} reads it')
        # what is zero in one is what the other is
        self.labels[op.outputs[0]] = torch.maximum(one, other)
        return True

    def _maps(self, op: Op) -> bool:
        """Whatever changes maps, each for itself."""
        labels = self.labels.get(op.inputs[0])
        shape = self._shape(op.outputs[0])
        if (
            labels is None
            or len(op.inputs) != 1
            or labels.dim() != len(shape)
            or labels.dim() < 3
            or labels.shape[-2:] != (1, 1)
            or shape[:-2] != self._shape(op.inputs[0])[:-2]
        ):
            return False
        self.labels[op.outputs[0]] = labels
        return True

    def _move(self, op: Op) -> bool:
        """Numbers change places, or zeros come beside them."""
        repeat = self.walker.record.repeats.get(op.index)
        if repeat is None or not all(
            self.walker.values[i].floating for i in op.outputs
        ):
            return False
        given = [
            self._of(i).expand(self._shape(i)).float().clone()
            for i in op.inputs
        ]
        sure = not op.module and canonical(op.name) in MOVES
        found = repeat.moved(given, sure)
        if [tuple(t.shape) for t in found] != [
            self._shape(i) for i in op.outputs
        ] or not all(t.numel() for t in found):
            return False
        for i, labels in zip(op.outputs, found, strict=True):
            self.labels[i] = _compact(labels).long()
        return True

    # -- small things ---------------------------------------------------
    def _of(self, value: int) -> Tensor:
        """Labels of a value, FIXED where it has none."""
        found = self.labels.get(value)
        if found is None:
            dims = len(self._shape(value))
            found = torch.full([1] * dims, FIXED)
        return found

    def _shape(self, value: int) -> tuple[int, ...]:
        return self.walker.values[value].shape

    def _pin(self, op: Op, why: str) -> None:
        for i in op.inputs:
            if i in self.labels:
                self.found.pin(self.labels[i], why)


def _compact(labels: Tensor) -> Tensor:
    """Axes along which all labels are the same get size 1."""
    for axis in range(labels.dim()):
        first = labels.narrow(axis, 0, min(1, labels.shape[axis]))
        if labels.shape[axis] > 1 and bool((labels == first).all()):
            labels = first
    return labels.contiguous()
