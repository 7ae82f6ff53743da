# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every quantized twin shares.

A twin is a subclass of the layer it replaces, and a layer becomes its twin
in place (``layer.__class__ = twin``). Parameter names, hooks and every
reference to the module stay valid, so a convolution that several heads
share stays one object.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..quantizers import BaseQuantizer

Tap = Callable[[str, int, Tensor], None]
"""``tap(port, level, tensor)`` sees the float input of each call."""

SWITCHES = frozenset(
    ('level', 'quantize_weight', 'quantize_act', 'drop_prob', 'generator')
)
"""Attributes that are set many times in a forward or a step."""


class QuantLayer(nn.Module):
    """Mixin of all twins: quantizes inputs and weight around the forward.

    The forward of the replaced class runs unchanged, on quantized inputs
    and with ``self.weight`` shadowed by its quantized value.

    Attributes:
        ports (tuple[str, ...]): Names of the tensor arguments that can be
            quantized, in argument order.
        weight_axis (int, optional): Output channel axis of the weight;
            None if the layer has no weight.
        act_axis (int): Channel axis of the inputs.
        rounded (Tensor, optional): Quantized weight where it is not the
            nearest value, set by reconstruction.
        bias_shift (Tensor, optional): What the quantized weight asks of the
            bias, shape (out_channels, ).
        weight_source (Callable, optional): Gives the quantized weight while
            it is being learned.
        drop_prob (float): Share of the elements of the inputs that are left
            float (QDrop); 0 but in reconstruction. Drawn from
            ``generator``.
        levels (int): Calls in one forward of the detector.
        level (int): Which of them comes next.
    """

    ports: ClassVar[tuple[str, ...]] = ('input',)
    weight_axis: ClassVar[int | None] = 0
    act_axis: ClassVar[int] = 1

    def init_twin(self) -> None:
        """Adds the state of a twin to a module that just became one."""
        self.weight_quantizer: BaseQuantizer | None = None
        # float mode is without these two
        self.register_buffer('rounded', None, persistent=False)
        self.register_buffer('bias_shift', None, persistent=False)
        self.weight_source: Callable[[], Tensor] | None = None
        self.drop_prob = 0.0
        self.generator: torch.Generator | None = None
        self.act_quantizers = nn.ModuleDict()
        self.quantize_weight = True
        self.quantize_act = True
        self.baked = False
        self.tap: Tap | None = None
        self.levels = 1
        self.level = 0

    def __setattr__(self, name: str, value: Any) -> None:
        # these change in every forward, and a module's own way is slow
        if name in SWITCHES:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the replaced class's forward on quantized operands."""
        level = self._take_level()
        inputs = [
            self._input(port, level, x)
            for port, x in zip(self.ports, args, strict=False)
        ]
        with self.shadow(self.operands()):
            return super().forward(*inputs, *args[len(inputs) :], **kwargs)

    def operands(self) -> dict[str, Any]:
        """Attributes to replace during the forward: weight and bias."""
        if (
            self.weight_quantizer is None
            or self.baked
            or (not self.quantize_weight)
        ):
            return {}
        found = {'weight': self.quantized_weight()}
        if self.bias_shift is not None:
            found['bias'] = self.bias + self.bias_shift
        return found

    def quantized_weight(self) -> Tensor:
        """The weight as the quantized forward uses it."""
        if self.weight_source is not None:
            return self.weight_source()
        if self.rounded is not None:
            return self.rounded
        return self.weight_quantizer(self.weight)

    @contextmanager
    def shadow(self, attributes: dict[str, Any]) -> Iterator[None]:
        """Hides parameters or children behind plain attributes.

        ``nn.Module`` looks parameters up only where the instance has no
        attribute of that name, so nothing registered is touched.
        """
        self.__dict__.update(attributes)
        try:
            yield
        finally:
            for name in attributes:
                del self.__dict__[name]

    def _take_level(self) -> int:
        level = self.level
        self.level = (level + 1) % self.levels
        return level

    def reset_level(self) -> None:
        """Starts a new forward: the next call is pyramid level 0."""
        self.level = 0

    def _input(self, port: str, level: int, x: Tensor) -> Tensor:
        if self.tap is not None:
            self.tap(port, level, x)
        if not self.quantize_act or port not in self.act_quantizers:
            return x
        quantized = self.act_quantizers[port](x, level)
        if self.drop_prob == 0:
            return quantized
        # drawn on the CPU: the same numbers whatever the device
        drawn = torch.rand(x.shape, generator=self.generator).to(x.device)
        return torch.where(drawn < 1 - self.drop_prob, quantized, x)

    @torch.no_grad()
    def bake(self) -> None:
        """Replaces weight and bias by what the forward used, for good."""
        if self.weight_quantizer is not None and not self.baked:
            self.weight.copy_(self.quantized_weight())
            self.rounded = None
            if self.bias_shift is not None:
                self.bias += self.bias_shift
                self.bias_shift = None
        self.baked = True


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """Every twin in the model, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantLayer)
    }


@contextmanager
def float_mode(
    model: nn.Module, weight: bool = True, act: bool = True
) -> Iterator[None]:
    """Runs a quantized model with float weights and activations.

    Args:
        model (nn.Module): A model with twins.
        weight (bool): Whether weights go float. Defaults to True.
        act (bool): Whether activations go float. Defaults to True.

    Raises:
        RuntimeError: If weights are baked: the float ones are gone.
    """
    layers = list(quant_layers(model).values())
    before = [(m.quantize_weight, m.quantize_act) for m in layers]
    if weight and any(m.baked and m.weight_quantizer for m in layers):
        raise RuntimeError(
            'the weights are baked, the float ones are gone; load the float '
            'checkpoint into a fresh model, or use weight=False'
        )
    for layer in layers:
        layer.quantize_weight &= not weight
        layer.quantize_act &= not act
    try:
        yield
    finally:
        for layer, (w, a) in zip(layers, before, strict=True):
            layer.quantize_weight, layer.quantize_act = w, a
