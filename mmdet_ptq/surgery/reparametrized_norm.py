# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Norms that bring the channels of what they give to one scale."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import PTQError
from ..registry import EDITS
from .edits import Edit
from .fold import ensure_bias, out_channels
from .modules import find_module
from .padding import can_pad, set_padding
from .scale import input_columns
from .scaled_input import can_shift, make_up


@EDITS.register_module()
@dataclass
class ReparametrizedNorm(Edit):
    """A norm that gives ``y / f - b``, and layers that make up for it.

    Scale reparametrization of RepQ-ViT (Li et al., 2023):
    ``gamma' = gamma / f``, ``beta' = beta / f - b``; of each layer ``W' = W
    diag(f)``, ``bias' = bias + W' b``. What is padded between is ``-b``
    where it was 0.

    Attributes:
        norm (str): Name of a norm with a weight for each channel.
        layers (list[str]): All that read what it gives, their input
            channels being its channels.
        pads (list[str]): Modules that pad it on the way.
        shifted (bool): Whether there is a shift b.
        factors (Tensor, optional): ``[C]``, above 0.
        shift (Tensor, optional): ``[C]``.
    """

    norm: str
    layers: list[str]
    pads: list[str] = field(default_factory=list)
    shifted: bool = False
    factors: Tensor | None = field(
        default=None, init=False, repr=False, compare=False
    )
    shift: Tensor | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @classmethod
    def by(
        cls,
        norm: str,
        layers: Sequence[str],
        factors: Tensor,
        shift: Tensor | None = None,
        pads: Sequence[str] = (),
    ) -> 'ReparametrizedNorm':
        """The edit with its numbers.

        Args:
            norm (str): Name of the norm.
            layers (Sequence[str]): Names of all that read it.
            factors (Tensor): ``[C]``, finite and above 0.
            shift (Tensor, optional): ``[C]``, finite.
            pads (Sequence[str]): Modules that pad it on the way; without a
                shift, 0 stays 0.
        """
        shifted = shift is not None
        found = cls(norm, list(layers), list(pads) if shifted else [], shifted)
        found.factors, found.shift = factors, shift
        return found

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`; computed in float64."""
        norm, layers, pads = self._modules(model)
        if self.factors is None or len(self.factors) != len(norm.weight):
            raise PTQError(
                f'{self.norm!r} has {len(norm.weight)} channels, and each '
                'needs a factor'
            )
        for layer in layers:
            make_up(layer, self.factors, self.shift)
        factors = self.factors.to(norm.weight.device).double()
        shift = 0.0 if self.shift is None else self.shift.to(factors)
        if self.shifted:
            ensure_bias(norm, len(factors))
        if norm.bias is not None:
            norm.bias.copy_(norm.bias.double() / factors - shift)
        norm.weight.copy_(norm.weight.double() / factors)
        for pad in pads:
            set_padding(pad, -shift.to(norm.weight))

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`."""
        norm, layers, pads = self._modules(model)
        if self.shifted:
            for module in (norm, *layers):
                ensure_bias(module, out_channels(module))
        for pad in pads:
            set_padding(pad, torch.zeros_like(norm.weight.detach()))

    def _modules(
        self, model: nn.Module
    ) -> tuple[nn.Module, list[nn.Module], list[nn.Module]]:
        norm = find_module(model, self.norm)
        weight = norm._parameters.get('weight')
        if weight is None or weight.dim() != 1:
            raise PTQError(
                f'{self.norm!r} has no weight for each channel that factors '
                'could go into'
            )
        for name in self.layers:
            layer = find_module(model, name)
            columns = len(input_columns(layer))
            if columns != len(weight):
                raise PTQError(
                    f'{name!r} has {columns} input channels and '
                    f'{self.norm!r} has {len(weight)}'
                )
            if self.shifted and not can_shift(layer):
                raise PTQError(
                    f'{name!r} adds zeros to its input, which a shift would '
                    'move'
                )
            if getattr(layer, 'groups', 1) != 1:
                raise PTQError(f'{name!r} has groups of input channels')
        for name in self.pads:
            module = find_module(model, name)
            if not can_pad(module):
                raise PTQError(
                    f'{name!r} is a {type(module).__name__}, which cannot '
                    'pad with a value for each channel; register a class '
                    'for it in mmdet_ptq.registry.PADDED'
                )
        layers = [find_module(model, name) for name in self.layers]
        return norm, layers, [find_module(model, name) for name in self.pads]
