# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Listening to what layers take, give, and are asked to change."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ..context import current
from ..layers import QuantLayer

OnInput = Callable[[str, str, int, Tensor], None]
"""``on_input(name, port, level, x)``"""

OnOutput = Callable[[str, int, Tensor], None]
"""``on_output(name, level, y)``"""

#: calls of a module that is no twin have no levels to go round in
_UNBOUNDED = 2**62


@contextmanager
def observing(
    layers: Mapping[str, nn.Module],
    inputs: OnInput | None = None,
    outputs: OnOutput | None = None,
    gradients: OnOutput | None = None,
    quantized: bool = False,
) -> Iterator[None]:
    """Tells listeners every call of some layers, until the block is left.

    Blocks may be nested and overlap; of one call, the listeners are told in
    the order in which their blocks were entered. They are given the very
    tensors of the forward, which they must not change, and which what
    follows may change: copy what is to be kept.

    Args:
        layers (Mapping[str, nn.Module]): By the names that the listeners
            are told. Twins, or any other modules: a norm, a block.
        inputs (Callable, optional): Told name, port, pyramid level and
            tensor of every input. Of a module that is no twin, the first
            floating tensor among its arguments is the port ``'input'``.
        outputs (Callable, optional): Told name, pyramid level and tensor of
            every floating tensor that is given back.
        gradients (Callable, optional): Told name, pyramid level and the
            gradient at every such tensor, of its shape, when autograd runs
            through it inside the block: levels in backward order. An output
            whose parameters and inputs ask for no gradient is made to ask
            for one, so frozen layers are heard too.
        quantized (bool): Whether inputs are told as the layer uses them:
            quantized, if they are just now. Defaults to False: float.

    The level of a module that is no twin is how often it was called before
    in the running forward.
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            watch = _Watch(name, layer, inputs, outputs, gradients)
            stack.callback(watch.close)
            if inputs is not None and isinstance(layer, QuantLayer):
                told = partial(inputs, name)
                stack.enter_context(layer.listening(told, quantized))
        yield


class _Watch:
    """The hooks on one layer."""

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        inputs: OnInput | None,
        outputs: OnOutput | None,
        gradients: OnOutput | None,
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.gradients = gradients
        self.hooks = []
        twin = isinstance(layer, QuantLayer)
        self.counted = layer.call_key if twin else self
        self.levels = layer.levels if twin else _UNBOUNDED
        if not twin:
            self.hooks.append(
                layer.register_forward_pre_hook(self._before, with_kwargs=True)
            )
        if outputs is not None or gradients is not None:
            self.hooks.append(layer.register_forward_hook(self._after))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        # a graph that outlives the block still has the hooks on its tensors
        self.gradients = None

    def _before(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        level = current().take_level(self, self.levels)
        found = _floating((args, kwargs))
        if self.inputs is not None and found:
            self.inputs(self.name, 'input', level, found[0])

    def _after(self, _: nn.Module, args: tuple, output: Any) -> Any:
        level = current().last_level(self.counted, self.levels)
        if self.outputs is not None:
            for y in _floating(output):
                self.outputs(self.name, level, y)
        if self.gradients is None or not torch.is_grad_enabled():
            return None
        return tree_map_only(Tensor, partial(self._marked, level), output)

    def _marked(self, level: int, y: Tensor) -> Tensor:
        """The output, with an ear on its gradient."""
        if not y.is_floating_point():
            return y
        if not y.requires_grad:
            # no leaf: what follows may work in place
            y = y.detach().requires_grad_().clone()
        y.register_hook(partial(self._slope, level))
        return y

    def _slope(self, level: int, gradient: Tensor) -> None:
        if self.gradients is not None:
            self.gradients(self.name, level, gradient)


def _floating(tree: Any) -> list[Tensor]:
    return [
        t
        for t in tree_flatten(tree)[0]
        if isinstance(t, Tensor) and t.is_floating_point()
    ]
