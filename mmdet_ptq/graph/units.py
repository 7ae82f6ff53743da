# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Residual blocks: what a block-wise reconstruction treats at once."""

from ..structures import Op, Unit
from .record import Span
from .vocabulary import ADD, canonical
from .walk import Walker

#: attributes of MMDetection's detectors: parts, not blocks
_PARTS = frozenset(
    {
        'backbone',
        'neck',
        'rpn_head',
        'roi_head',
        'bbox_head',
        'mask_head',
        'encoder',
        'decoder',
        'query_head',
        'panoptic_head',
        'semantic_head',
        'roi_head.bbox_head',
        'roi_head.mask_head',
    }
)


def find_units(walker: Walker) -> list[Unit]:
    """Partitions the layers into residual blocks and single layers.

    A block is the innermost module in which an addition joins a path with
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


def _is_part(name: str) -> bool:
    head, _, last = name.rpartition('.')
    # the heads of a cascade are `roi_head.bbox_head.0` and so on
    return (
        not name
        or name in _PARTS
        or (last.isdigit() and head.endswith('_head'))
    )


def _blocks(walker: Walker) -> set[str]:
    """The innermost module around each residual addition.

    That need not be the module that adds: mmcv's FFN is handed what it
    adds, and the block that hands it over is the one that skips.
    """
    spans = [s for s in walker.record.spans if not _is_part(s.name)]
    blocks: set[str] = set()
    for op in walker.ops:
        if canonical(op.name) not in ADD or op.module or len(op.inputs) < 2:
            continue
        # calls are in order of their end, so inner ones come first
        around = [s for s in spans if s.start <= op.index < s.stop]
        # `query + query_pos` computes nothing where it is added
        if not around or not any(
            _Path(walker, v, around[0]).layers for v in op.inputs[:2]
        ):
            continue
        if not _is_last(walker, op, around[0]):
            around = around[:1]
        for span in around:
            if _is_residual(walker, op, span):
                blocks.add(span.name)
                break
    return blocks


def _is_last(walker: Walker, add: Op, span: Span) -> bool:
    # a skip handed in from outside is added at the end; reference points,
    # to which attention adds offsets, are handed in too but used inside
    ends = walker.ahead(add.outputs, ('shape', 'pointwise'))
    return all(op.index >= span.stop for op, _ in ends)


def _is_residual(walker: Walker, add: Op, span: Span) -> bool:
    """Whether one operand is a skip of what the other is computed from.

    The skip may hold one layer, the projection of a downsampling block. A
    pyramid's top-down addition is none: its operands start from different
    inputs, or from several. Nor is an hourglass, which has whole blocks on
    both sides.
    """
    first, second = (_Path(walker, v, span) for v in add.inputs[:2])
    for skip, main in ((first, second), (second, first)):
        if not main.layers:
            continue
        if not skip.layers and skip.sources & main.sources:
            return True
        if (
            len(skip.layers) == 1
            and len(skip.sources) == 1
            and skip.sources == main.sources
        ):
            return True
    return False


class _Path:
    """What an operand is made from inside one call of a block.

    Attributes:
        layers (set[str]): Layers on the way.
        sources (set[int]): Live values from outside that it starts from.
    """

    def __init__(self, walker: Walker, value: int, span: Span) -> None:
        self.layers: set[str] = set()
        self.sources: set[int] = set()
        seen, todo = set(), [value]
        while todo:
            number = todo.pop()
            if number in seen:
                continue
            seen.add(number)
            op = walker.producer(number)
            if op is None or op.index < span.start:
                if op is not None or walker.values[number].is_input:
                    self.sources.add(number)
                continue
            if walker.kind(op) == 'layer':
                self.layers.add(op.module)
            todo += walker.carried(op)
