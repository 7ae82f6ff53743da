# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a watched forward leaves on paper."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..structures import Op, Value
from .repeat import Repeat, repeat_of


@dataclass(frozen=True)
class Span:
    """One call of a module that is not a leaf.

    Attributes:
        name (str): Module name, ``''`` for the model.
        start (int): Index of the first op of the call.
        stop (int): Index after its last op.
    """

    name: str
    start: int
    stop: int


@dataclass
class Trace:
    """What :func:`trace` saw.

    Attributes:
        ops (list[Op]): In execution order.
        values (dict[int, Value]): By id.
        spans (list[Span]): Calls of inner modules, in order of their end.
        outputs (tuple[int, ...]): Values that the forward returned.
        modules (dict[str, nn.Module]): Every module by its first name.
        products (dict[str, list[str]]): Functions that multiply outside of
            layers, by the innermost module that runs them.
        reads (dict[int, str]): Parameters that were read by anything but
            the module that owns them, by their id: name of the module in
            which that was.
        taken (set[int]): Values whose numbers left torch (``tolist``).
        repeats (dict[int, Repeat]): What moves numbers, by index of the op.
    """

    ops: list[Op] = field(default_factory=list)
    values: dict[int, Value] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    modules: dict[str, nn.Module] = field(default_factory=dict)
    products: dict[str, list[str]] = field(default_factory=dict)
    reads: dict[int, str] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    repeats: dict[int, Repeat] = field(default_factory=dict)

    def keep(
        self,
        index: int,
        name: str,
        function: Callable,
        args: tuple,
        kwargs: dict,
    ) -> None:
        """Keeps what is needed to run an op again, if it moves numbers."""
        repeat = repeat_of(name, function, args, kwargs)
        if repeat is not None:
            self.repeats[index] = repeat


def tensors_in(item: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yields the tensors of a nested structure in order.

    Args:
        item (Any): Tensors in lists, tuples, dicts, MMEngine data elements
            and objects that keep theirs in ``.tensor`` (MMDetection's
            boxes); anything else is passed over.
        depth (int): How deep ``item`` lies; below 12 nothing is looked at,
            so that a structure that contains itself ends.

    Yields:
        Tensor: One tensor after the other, repeats included.
    """
    if isinstance(item, Tensor):
        yield item
    elif depth > 12:
        return
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from tensors_in(part, depth + 1)
    elif isinstance(item, dict):
        for part in item.values():
            yield from tensors_in(part, depth + 1)
    elif isinstance(item, BaseDataElement):
        for _, part in item.all_items():
            yield from tensors_in(part, depth + 1)
    elif isinstance(getattr(item, 'tensor', None), Tensor):
        yield item.tensor
