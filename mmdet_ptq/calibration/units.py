# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What goes into a unit and what comes out of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import (
    tree_flatten,
    tree_map_only,
    tree_unflatten,
)

from ..context import current, forward_context
from ..graph.vocabulary import canonical
from ..layers import QuantLayer, twin_class
from ..structures import LayerGraph, Unit


class _Enough(Exception):
    """Ends a forward whose rest is not needed."""


@dataclass
class Call:
    """One call of a unit.

    Attributes:
        inputs (Any): ``(args, kwargs)`` of the module.
        outputs (list[Tensor]): Floating tensors that it returned, after
            the activation that follows.
        levels (dict[str, int]): Pyramid level of each of its layers.
        images (int, optional): Number of images in it.
    """

    inputs: Any
    outputs: list[Tensor]
    levels: dict[str, int] = field(default_factory=dict)
    images: int | None = None


class UnitView:
    """The module of a unit, watched and called alone.

    A single layer inside a ``ConvModule`` is taken with it, so with its
    norm and activation; one whose output goes into nothing but a ReLU is
    taken with the ReLU (the ``f`` of AdaRound and AdaQuant).

    Args:
        model (nn.Module): The detector.
        graph (LayerGraph): Its graph.
        unit (Unit): Which unit.

    Attributes:
        name (str): Of the unit.
        module (nn.Module): What is called.
        layers (dict[str, QuantLayer]): Its quantizable layers.
        once (bool): Whether every forward calls it exactly once. How often
            a head is called may depend on the image.
        maps (bool): Whether it has convolutions alone: what it returns
            along three axes is then a map without a batch axis.
    """

    def __init__(
        self, model: nn.Module, graph: LayerGraph, unit: Unit
    ) -> None:
        self.name = unit.name
        nodes = [graph.layers[n] for n in unit.layers]
        self.once = all(
            len(node.calls) == 1 and node.roles & {'backbone', 'neck'}
            for node in nodes
        )
        self.layers: dict[str, QuantLayer] = {
            n: model.get_submodule(n) for n in unit.layers
        }
        self.maps = all(
            twin_class(m).act_axis == -3 for m in self.layers.values()
        )
        self.module = model.get_submodule(unit.name)
        self.relu = False
        if unit.layers == (unit.name,):
            parent = model.get_submodule(unit.name.rpartition('.')[0])
            if isinstance(parent, ConvModule):
                self.module = parent
            else:
                self.relu = _feeds_relu(graph, unit.name)

    def finish(self, outputs: Any) -> list[Tensor]:
        """Floating tensors of what the module returned, activated.

        Maps get a batch axis where they have none, so that losses find
        their channels.
        """
        leaves, _ = tree_flatten(outputs)
        tensors = [
            t
            for t in leaves
            if isinstance(t, Tensor) and t.is_floating_point()
        ]
        if self.maps:
            tensors = [t[None] if t.dim() == 3 else t for t in tensors]
        return [functional.relu(t) for t in tensors] if self.relu else tensors

    @contextmanager
    def watching(
        self,
        on_call: Callable[[int, Any, Any], Any],
        on_inputs: Callable[[int, Any], Any] | None = None,
    ) -> Iterator[None]:
        """Reports the calls that a forward of the detector makes.

        Args:
            on_call (Callable): Given index, ``(args, kwargs)`` and output
                of each call; what it returns, if not None, replaces the
                output.
            on_inputs (Callable, optional): Given index and ``(args,
                kwargs)`` before each call; returns those to use.
        """
        counter = [0]

        def before(_: nn.Module, args: tuple, kwargs: dict) -> Any:
            return on_inputs(counter[0], (args, kwargs))

        def after(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            index, counter[0] = counter[0], counter[0] + 1
            return on_call(index, (args, kwargs), output)

        hooks = [self.module.register_forward_hook(after, with_kwargs=True)]
        if on_inputs is not None:
            hooks.append(
                self.module.register_forward_pre_hook(before, with_kwargs=True)
            )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def recording(
        self, note: Callable[[Call], Any], stop: bool = False
    ) -> Iterator[None]:
        """Gives every call, detached and copied, to ``note``.

        Args:
            note (Callable): Takes a call.
            stop (bool): Whether to leave the block after the call of a unit
                that is called once: nothing after it matters.
        """
        levels: list[dict[str, int]] = []

        def before(_: int, inputs: Any) -> Any:
            levels.append(self._levels())
            return inputs

        def after(index: int, inputs: Any, output: Any) -> None:
            # copies: what follows may work in place on either
            outputs = [t.detach().clone() for t in self.finish(output)]
            seen = current().images
            note(Call(_copy(inputs), outputs, levels[index], seen))
            if stop and self.once:
                raise _Enough

        with self.watching(after, before), suppress(_Enough):
            yield

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Leaves the block after the call of a unit that is called once."""

        def after(index: int, inputs: Any, output: Any) -> None:
            if self.once:
                raise _Enough

        with self.watching(after), suppress(_Enough):
            yield

    def _levels(self) -> dict[str, int]:
        now = current()
        return {
            n: now.next_level(m.call_key, m.levels)
            for n, m in self.layers.items()
        }

    def __call__(self, levels: dict[str, int], inputs: Any) -> list[Tensor]:
        """Runs the module alone, on the images of the context around it.

        Args:
            levels (dict[str, int]): ``Call.levels``.
            inputs (Any): Its ``(args, kwargs)``.

        Returns:
            list[Tensor]: Its outputs, like ``Call.outputs``.
        """
        args, kwargs = inputs
        with forward_context(current().images) as forward:
            for name, level in levels.items():
                forward.set_level(self.layers[name].call_key, level)
            return self.finish(self.module(*args, **kwargs))


def _copy(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.detach().clone(), tree)


def _feeds_relu(graph: LayerGraph, name: str) -> bool:
    """Whether the layer's output goes into ReLUs and nowhere else."""
    made = {v for call in graph.layers[name].calls for v in call.outputs}
    readers = [op for op in graph.ops if made & set(op.inputs)]
    return bool(readers) and all(
        canonical(op.name) == 'relu' for op in readers
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Nothing needs a gradient, nothing works in place; undone on leaving.

    An activation that works in place would change cached tensors.
    """
    parameters = [(p, p.requires_grad) for p in model.parameters()]
    modules = [m for m in model.modules() if getattr(m, 'inplace', False)]
    for parameter, _ in parameters:
        parameter.requires_grad_(False)
    for module in modules:
        module.inplace = False
    try:
        yield
    finally:
        for parameter, wanted in parameters:
            parameter.requires_grad_(wanted)
        for module in modules:
            module.inplace = True


def mix(
    quantized: Any, exact: Any, drop_prob: float, generator: torch.Generator
) -> Any:
    """Element-wise mixture of two nested values (QDrop, section 3.3).

    Args:
        quantized (Any): Taken with probability ``1 - drop_prob``.
        exact (Any): Of the same structure, taken otherwise.
        drop_prob (float): From 0 to 1.
        generator (torch.Generator): On the device of the tensors.

    Returns:
        Any: Floating tensors mixed, everything else from ``quantized``.
    """
    if drop_prob == 0:
        return quantized
    leaves, spec = tree_flatten(quantized)
    others, _ = tree_flatten(exact)
    mixed = []
    for ours, theirs in zip(leaves, others, strict=True):
        if isinstance(ours, Tensor) and ours.is_floating_point():
            drawn = torch.rand(
                ours.shape, generator=generator, device=ours.device
            )
            ours = torch.where(drawn < 1 - drop_prob, ours, theirs)
        mixed.append(ours)
    return tree_unflatten(mixed, spec)
