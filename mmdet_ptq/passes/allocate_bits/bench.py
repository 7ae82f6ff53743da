# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A detector whose weights and inputs take any widths, for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ...calibration import Session
from ...layers import quantizing
from ...quantizers import BaseQuantizer
from .trial_quantizers import TrialQuantizers, Widths


class Tap(nn.Module):
    """In place of a quantizer of inputs: what the bench says.

    Args:
        slot (Slot, optional): Of the operand; None passes the input on.
        quantizer (BaseQuantizer): Whose place it takes.
    """

    def __init__(self, slot: 'Slot | None', quantizer: BaseQuantizer) -> None:
        super().__init__()
        self.per_level = quantizer.per_level
        self._slot = slot

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """The input at the widths of its units."""
        return x if self._slot is None else self._slot.input(x, level)


class Slot:
    """One operand on the bench.

    Args:
        trial (TrialQuantizers): What it is.
        weight (Tensor, optional): The float weight, if it is one.
        device (torch.device): Where the model is.

    Attributes:
        widths (Widths): Bits of its units now.
        heard (bool): Whether anything was said of it: a gradient, or a call
            of a layer that has it.
    """

    def __init__(
        self,
        trial: TrialQuantizers,
        weight: Tensor | None,
        device: torch.device,
    ) -> None:
        self.trial = trial
        self.weight = weight
        self.device = device
        self.widths: Widths = [None] * trial.units
        self.heard = False
        self._leaf: Tensor | None = None
        self._sums: Tensor | None = None

    def set(self, widths: Widths) -> None:
        """Says the bits of its units."""
        self.widths = list(widths)
        self._leaf = None

    def operand(self) -> Tensor:
        """The weight as it is now, a leaf where gradients are enabled."""
        assert self.weight is not None
        self.heard = self.heard or not torch.is_grad_enabled()
        if self._leaf is None:
            with torch.no_grad():
                now = self.trial.at(self.weight, self.widths)
            self._leaf = now.detach()
        if torch.is_grad_enabled() and not self._leaf.requires_grad:
            self._leaf = self._leaf.clone().requires_grad_()
        return self._leaf

    def input(self, x: Tensor, level: int) -> Tensor:
        """An input as it is now; its gradient is listened to."""
        if not torch.is_grad_enabled():
            self.heard = True
            return self.trial.at(x, self.widths, level)
        y = self.trial.at(x, self.widths, level)
        if not y.requires_grad:
            y = y.detach().requires_grad_()
        # a tensor of its own: others may read x as well
        y = y.view_as(y)
        y.register_hook(partial(self._slope, x.detach(), y.detach(), level))
        return y

    @torch.no_grad()
    def _slope(
        self, x: Tensor, now: Tensor, level: int, slope: Tensor
    ) -> None:
        self.heard = True
        found = self._changes(x, now, level, slope)
        self._sums = found if self._sums is None else self._sums + found

    def _changes(
        self, x: Tensor, now: Tensor, level: int, slope: Tensor
    ) -> Tensor:
        """First-order change by each width of each unit, ``[units, W]``."""
        each = []
        for bits in self.trial.operand.widths:
            y = self.trial.at(x, [bits] * self.trial.units, level)
            each.append(self.trial.sums((y - now) * slope))
        return torch.stack(each, 1)

    @torch.no_grad()
    def collect(self) -> Tensor:
        """What the last backward has said, and forgets it.

        Returns:
            Tensor: float64 ``[units, W]``, 0 where nothing was heard.
        """
        leaf = self._leaf
        if leaf is not None and leaf.grad is not None:
            assert self.weight is not None
            self.heard = True
            self._sums = self._changes(self.weight, leaf, 0, leaf.grad)
            leaf.grad = None
        found, self._sums = self._sums, None
        if found is None:
            shape = (self.trial.units, len(self.trial.operand.widths))
            found = torch.zeros(shape, dtype=torch.float64, device=self.device)
        return found


class Bench:
    """All operands of a detector; whatever is none of them is float.

    Args:
        session (Session): The running quantization.
        trials (Sequence[TrialQuantizers]): The operands.

    Attributes:
        slots (list[Slot]): One for each.
    """

    def __init__(
        self, session: Session, trials: Sequence[TrialQuantizers]
    ) -> None:
        self._layers = session.layers
        self.slots = []
        for trial in trials:
            one, weight = trial.operand, None
            if one.kind == 'weight':
                weight = self._layers[one.holders[0][0]].weight.detach()
            self.slots.append(Slot(trial, weight, session.device))

    def set(self, widths: Sequence[Widths]) -> None:
        """Says the widths of all operands."""
        for slot, one in zip(self.slots, widths, strict=True):
            slot.set(one)

    def reset(self) -> None:
        """Makes all operands float."""
        self.set([[None] * slot.trial.units for slot in self.slots])

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Puts the operands in the place of the quantizers."""
        layers = self._layers
        ports = {p: s for s in self.slots for p in s.trial.operand.holders}
        weights = [port for port in ports if port[1] == 'weight']
        before = {
            (name, port): quantizer
            for name, layer in layers.items()
            for port, quantizer in layer.act_quantizers.items()
        }
        for (name, port), quantizer in before.items():
            tap = Tap(ports.get((name, port)), quantizer)
            layers[name].set_quantizer(port, tap)
        for name, _ in weights:
            layers[name].learn_weight(ports[name, 'weight'].operand)
        try:
            with quantizing(layers, [n for n, _ in weights], list(layers)):
                yield
        finally:
            for (name, port), quantizer in before.items():
                layers[name].set_quantizer(port, quantizer)
            for name, _ in weights:
                layers[name].fix_weight(None)
