# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Watches one real forward and writes down which op read which tensor."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..structures import Op, Value
from .functions import extension_functions
from .outside import Outside
from .record import Span, Trace, tensors_in
from .vocabulary import CONSTANT, TAKES, canonical, torch_name

#: tensor, its id if it has one, its version counter
_Seen = tuple[Tensor, int | None, int]


def _version(tensor: Tensor) -> int:
    # inference tensors keep no version, so writes into them go unnoticed
    return -1 if tensor.is_inference() else tensor._version


class _Frame:
    """A module call in progress."""

    def __init__(self, module: nn.Module, name: str, start: int) -> None:
        self.module = module
        self.name = name
        self.start = start
        self.seen: list[_Seen] | None = None  # a list if recorded as one op
        self.nested: list[Tensor] = []  # outputs of layers inside a leaf


class Recorder(TorchFunctionMode):
    """Gives every tensor an id and every op a line.

    Ids hang on tensors by weak reference, so that no activation lives
    longer than in a plain forward.

    Args:
        model (nn.Module): The model to watch.
        is_leaf (Callable): Whether a module is a quantizable leaf.
    """

    def __init__(
        self, model: nn.Module, is_leaf: Callable[[nn.Module], bool]
    ) -> None:
        super().__init__()
        self.trace = Trace(modules=dict(model.named_modules()))
        self._model = model
        self._is_leaf = is_leaf
        self._ids = WeakTensorKeyDictionary()
        self._frames = [_Frame(model, '', 0)]
        self._quiet = 0
        self._in_layers = 0
        self._outside = Outside(self.trace, model.parameters())

    # -- values ---------------------------------------------------------
    def mark_image(self, tensor: Tensor) -> None:
        """Declares a tensor to be the image batch."""
        value = self._label(tensor)
        self.trace.values[value] = replace(
            self.trace.values[value], is_input=True
        )

    def id_of(self, tensor: Tensor) -> int | None:
        """The id of a tensor, None if it has none yet."""
        return self._ids.get(tensor)

    def _label(self, tensor: Tensor) -> int:
        known = self._ids.get(tensor)
        return self._new(tensor, -1) if known is None else known

    def _new(self, tensor: Tensor | None, producer: int) -> int:
        number = len(self.trace.values)
        shape = () if tensor is None else tuple(tensor.shape)
        floating = tensor is None or tensor.is_floating_point()
        self.trace.values[number] = Value(
            number, producer, shape, floating=floating
        )
        if tensor is not None:
            self._ids[tensor] = number
        return number

    def _live(self, number: int | None) -> bool:
        if number is None:
            return False
        value = self.trace.values[number]
        return value.producer >= 0 or value.is_input

    # -- ops ------------------------------------------------------------
    def see(self, *items: Any) -> list[_Seen]:
        """Notes tensors before an op, to find out what it overwrites."""
        return [(t, self._ids.get(t), _version(t)) for t in tensors_in(items)]

    def note(
        self,
        name: str,
        seen: Sequence[_Seen],
        result: Any,
        module: str = '',
        layer: bool = False,
        call: tuple[Callable, tuple, dict] | None = None,
    ) -> None:
        """Records an op after it ran.

        Ops on constants alone are left out, and so are those that return
        their input as it was (dropout in eval, ``contiguous``).

        Args:
            name (str): Name of the op.
            seen (Sequence): What :meth:`see` gave for its arguments.
            result (Any): What it returned.
            module (str): Name of the module, if the op is one.
            layer (bool): Whether that is a quantizable layer.
            call (tuple, optional): Function and arguments, to run it again.
        """
        given = {id(t): t for t, _, _ in seen}
        written = {id(t): t for t, _, v in seen if _version(t) != v}
        bases = [
            (t._base, self._ids.get(t._base))
            for t in written.values()
            if not t.is_inference()
            and t._is_view()
            and id(t._base) not in written
        ]
        fresh = dict(written)
        fresh.update((id(t), t) for t, _ in bases)
        fresh.update(
            (id(t), t)
            for t in tensors_in(result)
            if layer or id(t) not in given
        )
        if not fresh:
            if canonical(name) in TAKES:
                self.trace.taken.update(i for _, i, _ in seen if i is not None)
            return
        if not layer and (
            canonical(name) in CONSTANT
            or not any(self._live(i) for _, i, _ in seen)
        ):
            for tensor in fresh.values():
                self._new(tensor, -1)
            return
        index = len(self.trace.ops)
        inputs = [
            self._new(None, -1)
            if old is None and id(t) in written
            else self._label(t)
            if old is None
            else old
            for t, old, _ in seen
        ]
        inputs += [old for _, old in bases if old is not None]
        outputs = tuple(self._new(t, index) for t in fresh.values())
        self.trace.ops.append(
            Op(
                index,
                name,
                module,
                self._frames[-1].name,
                tuple(inputs),
                outputs,
            )
        )
        if call is not None:
            self.trace.keep(index, name, *call)

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, torch_name(func)
        if self._quiet:
            # what a module without children is made of has no ids
            result = func(*args, **kwargs)
            product = self._in_layers == 0
        else:
            seen = self.see(args, kwargs)
            result = func(*args, **kwargs)
            product = any(self._live(i) for _, i, _ in seen)
            self.note(name, seen, result, call=(func, args, kwargs))
        self._look(name, (args, kwargs), result, product)
        return result

    def _look(self, name: str, given: Any, result: Any, product: bool) -> None:
        caller = self._frames[-1].module, self._frames[-1].name
        self._outside.note(name, given, result, caller, product)

    # -- modules --------------------------------------------------------
    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of every module."""
        name = self._names[module]
        frame = _Frame(module, name, len(self.trace.ops))
        alone = self._quiet == 0 and not module._modules
        self._quiet += 1
        if module is self._model:
            self._find_images(args, kwargs)
        if self._is_leaf(module) and kwargs:
            frame.seen = self.see(_in_order(module, args, kwargs))
        elif alone or self._is_leaf(module):
            frame.seen = self.see(args, kwargs)
        self._frames.append(frame)
        self._in_layers += self._is_leaf(module)
        if frame.seen is None:
            self._quiet -= 1

    def leave(
        self, module: nn.Module, args: tuple, kwargs: dict, result: Any
    ) -> None:
        """Forward hook of every module."""
        # called after an exception too, which the model may catch
        frame = self._frames.pop()
        self._in_layers -= self._is_leaf(module)
        if frame.seen is not None:
            self._quiet -= 1
        if frame.seen is None:
            if self._quiet == 0:
                self.trace.spans.append(
                    Span(frame.name, frame.start, len(self.trace.ops))
                )
            return
        self._quiet += 1
        layer = self._is_leaf(module)
        seen = frame.seen + self.see(frame.nested)
        name, call = type(module).__name__, (module.forward, args, kwargs)
        self.note(name, seen, result, frame.name, layer, call)
        if layer:
            for outer in reversed(self._frames):
                if outer.seen is not None:
                    outer.nested += list(tensors_in(result))
                    break
        self._quiet -= 1

    def _find_images(self, args: tuple, kwargs: dict) -> None:
        first = args[0] if args else kwargs.get('inputs')
        for item in (first, (args, kwargs)):
            images = [
                t
                for t in tensors_in(item)
                if t.dim() == 4 and t.is_floating_point()
            ]
            for tensor in images:
                self.mark_image(tensor)
            if images:
                return

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Everything installed inside, everything removed after."""
        self._names = {m: n for n, m in self.trace.modules.items()}
        with ExitStack() as stack:
            for module in self._names:
                for handle in (
                    module.register_forward_pre_hook(
                        self.enter, with_kwargs=True
                    ),
                    module.register_forward_hook(
                        self.leave, with_kwargs=True, always_call=True
                    ),
                ):
                    stack.callback(handle.remove)
            stack.enter_context(extension_functions(self._watched))
            stack.enter_context(self)
            yield

    def _watched(self, name: str, forward: Callable) -> Callable:

        def watched(*args: Any, **kwargs: Any) -> Any:
            given = args[1:], kwargs  # the first is its context
            if self._quiet:
                result = forward(*args, **kwargs)
                self._look(name, given, result, product=False)
                return result
            self._quiet += 1
            try:
                seen = self.see(*given)
                result = forward(*args, **kwargs)
                self._look(name, given, result, product=False)
                self.note(name, seen, result)
            finally:
                self._quiet -= 1
            return result

        return watched


def _in_order(module: nn.Module, args: tuple, kwargs: dict) -> list:
    """Arguments in the order in which the module's forward names them."""
    given = inspect.signature(module.forward).bind(*args, **kwargs)
    return list(given.arguments.values())
