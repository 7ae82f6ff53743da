# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What factors of channels do to quantized outputs."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from ...context import forward_context
from ...layers import QuantLayer, float_mode
from ...observers import search_weight_range, set_range
from ...quantizers import BaseQuantizer, FitsTensor
from ...registry import OBSERVERS, build_from
from ...structures import Port, Scaling
from ...surgery import output_rows, scaled_inputs, scaled_outputs
from .factors import read_squares, spread
from .seen import Call, Seen


class Trial:
    """Tries factors on parts of the float inputs.

    Args:
        layers (Mapping[str, QuantLayer]): The twins by name; weights have
            the factors that were taken.
        seen (Seen): Inputs, as they were before any factor was taken.
        observer (dict): Observer of activations.
    """

    def __init__(
        self, layers: Mapping[str, QuantLayer], seen: Seen, observer: dict
    ) -> None:
        self.layers = layers
        self.seen = seen
        self.observer = observer
        #: what each input is divided by, by factors taken so far
        self._taken: dict[Port, Tensor] = {}

    @torch.no_grad()
    def error(self, scaling: Scaling, factors: Tensor) -> float:
        """Error of all quantized outputs of who reads the channels.

        Weights that make them count too, where one scale serves all.

        Args:
            scaling (Scaling): What is scaled.
            factors (Tensor): (K, ).

        Returns:
            float: Squared error of each layer's output over the square of
            that output, added up; 0 if no image has reached any.
        """
        divided = self._divisors(scaling, factors)
        total = 0.0
        for name in dict.fromkeys(name for name, _ in divided):
            if name in self.seen.calls:
                weight = self._weight(name, scaling, factors)
                total += self._layer(name, divided, weight)
        for name in scaling.outputs:
            total += self._maker(name, scaling, factors)
        return total

    def _maker(self, name: str, scaling: Scaling, factors: Tensor) -> float:
        """Error of a weight that has one scale for all output channels.

        Rows count by the square of the weights that read them.
        """
        layer = self.layers.get(name)
        quantizer = None if layer is None else layer.weight_quantizer
        if quantizer is None or quantizer.granularity.kind != 'tensor':
            return 0.0  # a scale for each channel has no part in it
        index = scaling.outputs[name]
        own = spread(factors, index).to(layer.weight)
        weight = on_own_grid(
            quantizer, scaled_outputs(layer.weight, 1 / own, layer)
        )
        wrong = scaled_outputs(weight, own, layer) - layer.weight
        exact = output_rows(layer).square().sum(1)
        counts = read_squares(scaling, self.layers)[index.abs()].to(exact)
        error = output_rows(layer, wrong).square().sum(1)
        return float(counts @ error / (counts @ exact).clamp(min=1e-30))

    def take(self, scaling: Scaling, factors: Tensor) -> None:
        """Notes factors that are taken."""
        for port, divisor in self._divisors(scaling, factors).items():
            self._taken[port] = divisor * self._taken.get(port, 1)

    def _divisors(
        self, scaling: Scaling, factors: Tensor
    ) -> dict[Port, Tensor]:
        found = {
            port: spread(factors, index)
            for port, index in scaling.ports.items()
        }
        for name, index in scaling.inputs.items():
            ones = (1,) * (-1 - self.layers[name].act_axis)
            found[name, 'input'] = spread(factors, index).view(-1, *ones)
        return found

    def _weight(
        self, name: str, scaling: Scaling, factors: Tensor
    ) -> dict[str, Tensor]:
        """The quantized weight of a layer, for factors."""
        layer = self.layers[name]
        if layer.weight_axis is None:
            return {}
        weight = layer.weight
        if name in scaling.inputs:
            own = spread(factors, scaling.inputs[name])
            weight = scaled_inputs(layer, own).to(weight.dtype)
        if layer.weight_quantizer is not None:
            weight = on_own_grid(layer.weight_quantizer, weight)
        return dict(weight=weight)

    def _layer(
        self,
        name: str,
        divided: Mapping[Port, Tensor],
        weight: dict[str, Tensor],
    ) -> float:
        layer = self.layers[name]
        exact = _over(self.seen.calls[name], name, self._taken)
        scaled = self._quantize(layer, _over(exact, name, divided))
        wrong = power = torch.zeros(())
        with float_mode({name: layer}), forward_context():
            for (_, before), (_, after) in zip(exact, scaled, strict=True):
                y = layer(*before.values())
                other = functional_call(layer, weight, tuple(after.values()))
                wrong = wrong + (other - y).square().sum().cpu()
                power = power + y.square().sum().cpu()
        return float(wrong / power) if power > 0 else 0.0

    def _quantize(self, layer: QuantLayer, calls: list[Call]) -> list[Call]:
        """Quantizes inputs by ranges of their own."""
        for port, quantizer in layer.act_quantizers.items():
            observer = build_from(OBSERVERS, self.observer)
            count = layer.levels if quantizer.per_level else 1
            device = calls[0][1][port].device
            observer.bind(quantizer.granularity, count, device)
            for level, inputs in calls:
                observer.observe(inputs[port], level)
            observer.end_image()
            ranged = copy.deepcopy(quantizer)
            set_range(ranged, observer, *observer.ranges(ranged))
            for level, inputs in calls:
                inputs[port] = ranged(inputs[port], level)
        return calls


def _over(
    calls: list[Call], name: str, divisors: Mapping[Port, Tensor]
) -> list[Call]:
    """Copies of calls with each input over its divisor."""
    return [
        (
            level,
            {
                port: x / divisors[name, port].to(x)
                if (name, port) in divisors
                else x
                for port, x in inputs.items()
            },
        )
        for level, inputs in calls
    ]


def on_own_grid(
    quantizer: BaseQuantizer, weight: Tensor, steps: int | None = None
) -> Tensor:
    """A weight on the grid that the quantizer would get for it.

    Args:
        quantizer (BaseQuantizer): Of the weight; stays as it is.
        weight (Tensor): Float.
        steps (int, optional): Resolution of the search of its range.
            Defaults to None: that of ``search_weight_range``.
    """
    quantizer = copy.deepcopy(quantizer)
    given = {} if steps is None else dict(steps=steps)
    if isinstance(quantizer, FitsTensor):
        quantizer.fit(weight)
    else:
        quantizer.set_range(*search_weight_range(weight, quantizer, **given))
    return quantizer(weight)
