# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Forwards of a whole detector that skip what a unit cannot change.

A loss on the detector's outputs is differentiated through everything after
the unit. What the unit does not reach, the layers before it and branches
beside it, gives the same tensors in every step: it is run once for each
image, and its outputs stand in for it afterwards. Which modules these are
is found by running, so skips, pyramids and shared heads need no rules: a
call is replayed if its output neither depends on the unit by autograd nor
changes when the unit's output is disturbed (reference points are detached
in decoders, so autograd alone would not see them).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_flatten, tree_map_only

from ..context import current
from ..layers import QuantLayer
from .units import UnitView

Key = tuple[str, int]
"""Module name and which of its calls in one forward."""


@dataclass
class _Frame:
    """A module that is running, and the replayable calls inside it."""

    key: Key
    inside: list[Key] = field(default_factory=list)
    unit: bool = False


class Replay:
    """The calls that a unit cannot change.

    Args:
        model (nn.Module): The detector.
        view (UnitView): The unit.
        run (Callable): Runs the detector as the loss will.

    Attributes:
        reached (bool): Whether that run called the unit.
    """

    def __init__(
        self, model: nn.Module, view: UnitView, run: Callable[[], Any]
    ) -> None:
        self.names = {id(m): n for n, m in model.named_modules()}
        self.model = model
        # modules that share children are called under their first name
        self.parts = {
            name: [
                m
                for m in module.modules()
                if isinstance(m, QuantLayer) and m.levels > 1
            ]
            for name, module in model.named_modules()
        }
        self.device = next(model.parameters()).device
        with torch.no_grad(), _disturbed(view, 0.0, self.device):
            plain = self._watch(run)
        with torch.no_grad(), _disturbed(view, 1.0, self.device):
            moved = self._watch(run)
        changed = {
            key
            for key in set(plain) | set(moved)
            if plain.get(key) != moved.get(key)
        }
        self.keys = self._maximal(run, view, changed)

    def record(self, run: Callable[[], Any]) -> dict[Key, Any]:
        """Outputs of the replayable calls on one image.

        Args:
            run (Callable): Runs the detector on that image.

        Returns:
            dict[Key, Any]: Copies, and the levels that the layers inside
            were left at.
        """
        wanted = set(self.keys)
        found: dict[Key, Any] = {}

        def keep(key: Key, output: Any) -> None:
            if key in wanted:
                copy = tree_map_only(
                    Tensor, lambda t: t.detach().clone(), output
                )
                levels = [
                    current().next_level(layer.call_key, layer.levels)
                    for layer in self.parts[key[0]]
                ]
                found[key] = (copy, levels)

        with torch.no_grad(), self._listening(lambda key: None, keep):
            run()
        return found

    @contextmanager
    def replaying(self, stored: dict[Key, Any]) -> Iterator[None]:
        """Lets the recorded calls return what they returned.

        Args:
            stored (dict[Key, Any]): From :meth:`record`.
        """
        with ExitStack() as stack:
            for name in dict.fromkeys(name for name, _ in stored):
                stack.enter_context(self._replaced(name, stored))
            yield

    @contextmanager
    def _replaced(self, name: str, stored: dict[Key, Any]) -> Iterator[None]:
        module = self.model.get_submodule(name)
        original, own = module.forward, vars(module).get('forward')
        counter = [0]

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = (name, counter[0])
            counter[0] += 1
            if key not in stored:
                return original(*args, **kwargs)
            output, levels = stored[key]
            for layer, level in zip(self.parts[name], levels, strict=True):
                current().set_level(layer.call_key, level)
            # copies: a residual sum may work in place on what it is given
            return tree_map_only(Tensor, torch.clone, output)

        module.forward = forward
        try:
            yield
        finally:
            del module.forward
            if own is not None:
                module.forward = own

    def _watch(self, run: Callable[[], Any]) -> dict[Key, list[tuple]]:
        """Fingerprints of what every call returned."""
        seen: dict[Key, list[tuple[tuple[int, ...], Tensor]]] = {}

        def note(key: Key, output: Any) -> None:
            seen[key] = [_fingerprint(t) for t in _tensors(output)]

        with self._listening(lambda key: None, note):
            run()
        # looked at once: each look makes a GPU wait
        sums = [
            one.to(self.device)
            for prints in seen.values()
            for _, one in prints
        ]
        found = iter(torch.stack(sums).tolist() if sums else [])
        return {
            key: [(shape, *next(found)) for shape, _ in prints]
            for key, prints in seen.items()
        }

    def _maximal(
        self, run: Callable[[], Any], view: UnitView, changed: set[Key]
    ) -> list[Key]:
        """Outermost calls that the unit does not reach."""
        unit = {id(m) for m in view.module.modules()}
        stack = [_Frame(('', 0))]

        def before(key: Key) -> None:
            stack.append(_Frame(key))

        def after(key: Key, output: Any) -> None:
            frame = stack.pop()
            module = self.model.get_submodule(key[0])
            frame.unit |= id(module) in unit
            reached = frame.unit or any(
                t.requires_grad for t in _tensors(output)
            )
            if reached or key in changed or not _tensors(output):
                stack[-1].inside += frame.inside
            else:
                stack[-1].inside.append(key)
            stack[-1].unit |= frame.unit

        with (
            torch.enable_grad(),
            _disturbed(view, 0.0, self.device),
            self._listening(before, after),
        ):
            run()
        self.reached = stack[0].unit
        # the detector itself is never called as a module here
        return stack[0].inside

    @contextmanager
    def _listening(
        self,
        before: Callable[[Key], None],
        after: Callable[[Key, Any], None],
    ) -> Iterator[None]:
        counts: dict[str, int] = {}
        open_: list[Key] = []

        def enter(module: nn.Module, _: tuple) -> None:
            name = self.names.get(id(module))
            if name:
                key = (name, counts.get(name, 0))
                counts[name] = key[1] + 1
                open_.append(key)
                before(key)

        def leave(module: nn.Module, _: tuple, output: Any) -> None:
            if self.names.get(id(module)):
                after(open_.pop(), output)

        handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _disturbed(
    view: UnitView, size: float, device: torch.device
) -> Iterator[None]:
    """Adds noise of the unit's own size to its outputs, marked by autograd."""
    generator = torch.Generator(device).manual_seed(0)

    def shake(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        if size:
            noise = torch.randn(t.shape, generator=generator, device=device)
            # of the tensor's own size, and not nothing where it is zero
            t = t + size * noise.to(t) * (t.abs().mean() + 1e-3)
        # no leaf: what follows may work in place
        return t.detach().requires_grad_(torch.is_grad_enabled()).clone()

    def after(index: int, inputs: Any, output: Any) -> Any:
        return tree_map_only(Tensor, shake, output)

    with view.watching(after):
        yield


def _fingerprint(t: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Shape and sums that differ if any element does; a copy costs more."""
    exact = t.detach().double()
    return tuple(t.shape), torch.stack([exact.norm(p) for p in (1, 2)])


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in tree_flatten(output)[0] if isinstance(t, Tensor)]
