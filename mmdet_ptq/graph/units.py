# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Residual blocks: what a block-wise reconstruction treats at once."""
from collections.abc import Callable

from ..structures import Op, Unit
from .record import Span
from .vocabulary import ADD, canonical
from .walk import Walker

#: attributes of MMDetection's detectors: parts, not blocks
_PARTS = frozenset({
    'backbone', 'neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head',
    'encoder', 'decoder', 'query_head', 'panoptic_head', 'semantic_head',
    'roi_head.bbox_head', 'roi_head.mask_head'
})


def find_units(walker: Walker) -> list[Unit]:
    """Partitions the layers into residual blocks and single layers.

    A block is a module in whose own forward an addition joins a path with
    layers to a skip of the block's input. A block inside a block belongs
    to the outer one.

    Args:
        walker (Walker): The trace.

    Returns:
        list[Unit]: In order of the first call of their layers.
    """
    blocks = _blocks(walker)
    members: dict[str, list[str]] = {}
    for layer in walker.calls:
        members.setdefault(_home(layer, blocks), []).append(layer)
    # a block left with one layer is still named after the block: its
    # output, not the layer's, is what is reconstructed
    return [Unit(name, tuple(layers)) for name, layers in members.items()]


def _home(layer: str, blocks: set[str]) -> str:
    parts = layer.split('.')
    for length in range(1, len(parts)):
        name = '.'.join(parts[:length])
        if name in blocks:
            return name
    return layer


def _blocks(walker: Walker) -> set[str]:
    adds: dict[str, list[Op]] = {}
    for op in walker.ops:
        if (canonical(op.name) in ADD and not op.module and op.scope
                and op.scope not in _PARTS and len(op.inputs) > 1):
            adds.setdefault(op.scope, []).append(op)
    blocks = set()
    for span in walker.record.spans:
        inside = [op for op in adds.get(span.name, ())
                  if span.start <= op.index < span.stop]
        if span.name not in blocks and any(
                _is_residual(walker, op, span) for op in inside):
            blocks.add(span.name)
    return blocks


def _is_residual(walker: Walker, add: Op, span: Span) -> bool:
    """Whether one operand is a skip of what the other is computed from.

    The skip may hold one layer, the projection of a downsampling block. A
    pyramid's top-down addition is none: its operands start from different
    inputs, or from several.
    """
    first, second = (_Path(walker, v, span) for v in add.inputs[:2])
    for skip, main in ((first, second), (second, first)):
        if not main.layers:
            continue
        if skip.plain & main.sources:
            return True
        if (len(skip.layers) == 1 and len(skip.sources) == 1
                and skip.sources == main.sources):
            return True
    return False


class _Path:
    """What an operand is made from inside one call of a block.

    Attributes:
        layers (set[str]): Layers on the way.
        sources (set[int]): Live values from outside that it starts from.
        plain (set[int]): Those reached without a layer between.
    """

    def __init__(self, walker: Walker, value: int, span: Span) -> None:
        self.layers: set[str] = set()
        self.sources = self._collect(walker, value, span, self._add_layer)
        self.plain = self._collect(walker, value, span, None)

    def _add_layer(self, op: Op) -> None:
        self.layers.add(op.module)

    @staticmethod
    def _collect(walker: Walker, value: int, span: Span,
                 on_layer: Callable[[Op], None] | None) -> set[int]:
        sources, seen, todo = set(), set(), [value]
        while todo:
            number = todo.pop()
            if number in seen:
                continue
            seen.add(number)
            op = walker.producer(number)
            outside = op is None or op.index < span.start
            if outside:
                if op is not None or walker.values[number].is_input:
                    sources.add(number)
                continue
            if walker.kind(op) == 'layer':
                if on_layer is None:
                    continue
                on_layer(op)
            todo += walker.carried(op)
        return sources
