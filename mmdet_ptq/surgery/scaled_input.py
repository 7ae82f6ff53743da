# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Layers that bring their input channels to one scale themselves."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import PTQError
from ..registry import EDITS
from .edits import Edit
from .fold import ensure_bias, out_channels
from .modules import find_module
from .scale import input_columns, scaled_inputs


@EDITS.register_module()
@dataclass
class ScaledInput(Edit):
    """A layer whose input channels have a scale, and a shift, of their own.

    With factors f and shifts b the layer takes ``x' = x / f - b``, and its
    weight and bias make up for it: ``W' = W diag(f)``, ``bias' = bias + W'
    b`` (the scale reparametrization of RepQ-ViT, Li et al., 2023, equations
    6 to 8). One grid for x' is then a grid for each channel of x.

    Attributes:
        layer (str): Name of a convolution or linear layer without groups.
        shifted (bool): Whether there is a shift.
        factors (Tensor, optional): ``[C]``, above 0.
        shift (Tensor, optional): ``[C]``.

    Of a layer that scales its inputs already, what it takes so far is x.
    """

    layer: str
    shifted: bool = False
    factors: Tensor | None = field(
        default=None, init=False, repr=False, compare=False
    )
    shift: Tensor | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @classmethod
    def by(
        cls, layer: str, factors: Tensor, shift: Tensor | None = None
    ) -> 'ScaledInput':
        """The edit with its numbers.

        Args:
            layer (str): Name of the layer.
            factors (Tensor): ``[C]``, finite and above 0.
            shift (Tensor, optional): ``[C]``, finite.
        """
        found = cls(layer, shift is not None)
        found.factors, found.shift = factors, shift
        return found

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`; computed in float64."""
        layer = self._layer(model)
        if self.factors is None or len(self.factors) != _channels(layer):
            raise PTQError(
                f'{self.layer!r} has {_channels(layer)} input channels, and '
                'each needs a factor'
            )
        make_up(layer, self.factors, self.shift)
        factors, shift = self.factors.double(), self.shift
        before = layer._buffers.get('input_factors')
        if before is not None:
            moved = layer._buffers.get('input_shift')
            if moved is not None:
                moved = moved.double() / factors.to(moved.device)
                shift = moved if shift is None else shift.to(moved) + moved
            factors = factors.to(before.device) * before.double()
        self._register(layer, factors, shift)

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`."""
        layer = self._layer(model)
        ones = layer.weight.new_ones(_channels(layer))
        if self.shifted:
            ensure_bias(layer, out_channels(layer))
        shifted = self.shifted or 'input_shift' in layer._buffers
        self._register(layer, ones, ones if shifted else None)

    def _layer(self, model: nn.Module) -> nn.Module:
        layer = find_module(model, self.layer)
        if getattr(layer, 'groups', 1) != 1:
            raise PTQError(
                f'{self.layer!r} has groups of input channels; its inputs '
                'cannot be scaled'
            )
        if self.shifted and not can_shift(layer):
            raise PTQError(
                f'{self.layer!r} adds zeros to its input, which a shift would '
                'move'
            )
        return layer

    @staticmethod
    def _register(
        layer: nn.Module, factors: Tensor, shift: Tensor | None
    ) -> None:
        like = layer.weight
        layer.register_buffer('input_factors', factors.to(like).clone())
        if shift is not None:
            layer.register_buffer('input_shift', shift.to(like).clone())


@torch.no_grad()
def make_up(
    layer: nn.Module, factors: Tensor, shift: Tensor | None = None
) -> None:
    """Changes weight and bias for an input ``x / factors - shift``.

    Computed in float64; a layer without a bias gets one for the shift.

    Args:
        layer (nn.Module): A convolution or linear layer; if there is a
            shift, one that :func:`can_shift`.
        factors (Tensor): ``[C]``, above 0.
        shift (Tensor, optional): ``[C]``.
    """
    weight = scaled_inputs(layer, factors)
    if shift is not None:
        ensure_bias(layer, out_channels(layer))
        taps = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
        moved = taps.sum(2) @ shift.to(weight)
        layer.bias.copy_(layer.bias.double() + moved)
    layer.weight.copy_(weight)


def _channels(layer: nn.Module) -> int:
    return len(input_columns(layer))


def can_shift(layer: nn.Module) -> bool:
    """Whether a bias can make up for a shift of the input channels.

    It cannot where zeros come in at the borders.

    Args:
        layer (nn.Module): A convolution or linear layer.
    """
    if isinstance(layer, nn.Conv2d):
        return not any(layer._reversed_padding_repeated_twice)
    return isinstance(layer, nn.Linear)
