# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is true of one forward: how many images, which pyramid level next.

A head is one module that is called once for each pyramid level, and which
call it is decides the range of its inputs. That is a fact of the forward,
not of the layer: threads that share a detector run forwards of their own.
Each thread has a stack of contexts, and the topmost is the forward that
runs now. What runs outside of a forward uses the base context of its thread,
in which the level of a call is known only inside a call of the head.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from torch import Tensor, nn


class ForwardContext:
    """One forward.

    Args:
        images (int, optional): Number of images in the batch, None if it is
            not known.
        owner (nn.Module, optional): The model whose forward it is. Models
            and layers are not kept alive.
        whole (bool): Whether it began when the forward did. Defaults to
            True; the base context of a thread did not.
    """

    def __init__(
        self,
        images: int | None = None,
        owner: nn.Module | None = None,
        whole: bool = True,
    ) -> None:
        self.images = images
        self._whole = whole
        self._begun: WeakSet[Any] = WeakSet()
        self._owner = None if owner is None else ref(owner)
        self._next: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def take_level(self, layer: Any, levels: int) -> int:
        """Pyramid level of the call that starts now; the next comes after.

        Args:
            layer (Any): What is called; any object that can be referred to
                weakly.
            levels (int): Calls in one forward; level ``levels`` is 0 again.
        """
        if levels == 1:
            return 0
        level = self._next.get(layer, 0) % levels
        self._next[layer] = level + 1
        return level

    def next_level(self, layer: Any, levels: int) -> int:
        """Pyramid level that the next call of ``layer`` will have."""
        return 0 if levels == 1 else self._next.get(layer, 0) % levels

    def last_level(self, layer: Any, levels: int) -> int:
        """Pyramid level that the latest call of ``layer`` had."""
        return 0 if levels == 1 else (self._next.get(layer, 0) - 1) % levels

    def begin(self, layer: Any) -> None:
        """Makes 0 the pyramid level of the next call, and known."""
        self._next.pop(layer, None)
        self._begun.add(layer)

    def end(self, layer: Any) -> None:
        """Ends what :meth:`begin` began."""
        self._begun.discard(layer)

    def knows(self, layer: Any) -> bool:
        """Whether calls of ``layer`` have been counted from the first on."""
        return self._whole or layer in self._begun

    def is_round(self, layer: Any, levels: int) -> bool:
        """Whether the calls so far make whole rounds of all levels."""
        return self._next.get(layer, 0) in (0, levels)

    def set_level(self, layer: Any, level: int) -> None:
        """Makes ``level`` the pyramid level of the next call."""
        self._next[layer] = level

    def is_of(self, model: nn.Module) -> bool:
        """Whether this is a forward of ``model``."""
        return self._owner is not None and self._owner() is model


class _Thread(threading.local):
    def __init__(self) -> None:
        self.stack = [ForwardContext(whole=False)]


_thread = _Thread()


def current() -> ForwardContext:
    """The forward that this thread runs now."""
    return _thread.stack[-1]


def images() -> int | None:
    """Number of images in the batch of the running forward, if known."""
    return _thread.stack[-1].images


@contextmanager
def forward_context(images: int | None = None) -> Iterator[ForwardContext]:
    """A forward that does not go through the model's own call.

    Args:
        images (int, optional): Number of images in the batch.

    Yields:
        ForwardContext: In which every layer starts at pyramid level 0.
    """
    stack = _thread.stack
    depth = len(stack)
    stack.append(ForwardContext(images))
    try:
        yield stack[-1]
    finally:
        del stack[depth:]


def follow(model: nn.Module) -> None:
    """Gives every call of a model a context of its own.

    It is closed when the call ends, also by an exception.
    """
    model.register_forward_pre_hook(_enter, with_kwargs=True)
    model.register_forward_hook(_leave, always_call=True)


def count_images(inputs: Any) -> int | None:
    """Number of images in what a detector is given.

    Args:
        inputs (Any): A tensor of shape (B, ...), or a list of B images.

    Returns:
        int, optional: B, or None if it is neither.
    """
    if isinstance(inputs, Tensor):
        return inputs.shape[0] if inputs.dim() else None
    return len(inputs) if isinstance(inputs, list | tuple) else None


def _enter(model: nn.Module, args: tuple, kwargs: dict) -> None:
    inputs = args[0] if args else kwargs.get('inputs')
    stack = _thread.stack
    # hooks do not hear of a KeyboardInterrupt in an earlier call
    stack[1:] = [c for c in stack[1:] if not c.is_of(model)]
    stack.append(ForwardContext(count_images(inputs), model))


def _leave(model: nn.Module, args: tuple, output: Any) -> None:
    # another hook may have raised before this forward was entered
    stack = _thread.stack
    for depth in range(len(stack) - 1, 0, -1):
        if stack[depth].is_of(model):
            del stack[depth:]
            return
