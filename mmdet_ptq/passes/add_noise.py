# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that adds fixed noise to inputs, where that helps."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..calibration import Session
from ..checks import number, whole
from ..errors import QuantConfigError
from ..layers import QuantLayer
from ..quantizers import BaseQuantizer, HasRange
from ..records import NoiseRecord
from ..registry import PASSES
from ..structures import Port
from ..surgery import ScaledInput
from .base import BasePass
from .scale_inputs.rows import Rows, by_level, may_scale, sample_rows

#: most rows of each pyramid level, of either half of the images
MOST = 512
AMPLITUDES = tuple(round(0.05 * i, 2) for i in range(1, 21))

Levels = dict[int, Tensor]
"""Rows ``[T, C]`` of each pyramid level"""


@PASSES.register_module()
class AddNoise(BasePass):
    """Adds fixed noise to the inputs of linear layers (NoisyQuant).

    Of each channel a number is drawn once, uniformly between -n and n, and
    is added to the input before it is quantized; the bias takes it away
    again, ``bias' = bias - Wq N`` (Liu et al., 2023). Values
    that lie in the middle between two steps, many at once as they often do,
    are then rounded both ways. The float model stays the same. It costs an
    addition an element.

    Several n and draws are tried on rows of the calibration images: the
    error of the layers' outputs chooses, and the tensor stays as it is
    unless what one half of the images chooses lowers the error on the other,
    both halves together. Layers that read the same tensor share the noise.

    Ranges stay those of the input without noise, as in the paper, so no pass
    behind it sets ranges from the statistics of ``Observe``, which are of
    the input without noise too. Means for ``CorrectBias`` are renewed.

    Args:
        amplitudes (Sequence[float]): n, in steps of the quantizer; 0 is
            always tried. Defaults to 0.05, 0.1 ... 1.
        draws (int): How often noise is drawn. Defaults to 3.
        rows (int): Most rows of a call, of an image. Defaults to 64.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'ranges'})
    gives: ClassVar[frozenset[str]] = frozenset({'noisy'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'noisy', 'corrected', 'learned'}
    )

    def __init__(
        self,
        amplitudes: Sequence[float] = AMPLITUDES,
        draws: int = 3,
        rows: int = 64,
    ) -> None:
        self.amplitudes = [
            number('amplitudes', n, above=True) for n in amplitudes
        ]
        if not self.amplitudes:
            raise ValueError('amplitudes is empty: no noise would be tried')
        self.draws = whole('draws', draws, 1)
        self.rows = whole('rows', rows, 1)

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`."""
        linear = _linear(session)
        if linear and not any(_usable(session, g) for g in linear):
            raise QuantConfigError(
                f'AddNoise: of {len(linear)} inputs of linear layers none has '
                'a range for the whole tensor and a uniform grid; set '
                "act=dict(type='UniformQuantizer', granularity='tensor') for "
                'them, or leave the pass out'
            )

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        groups = [g for g in _linear(session) if _usable(session, g)]
        if not groups:
            session.warn(
                'AddNoise: no input of a linear layer is quantized here, so '
                'no noise was added'
            )
            return
        with session.stage('noise'):
            names = {g[0][0] for g in groups}
            seen = sample_rows(session, names, self.rows)
            for i, group in enumerate(groups):
                session.progress('noise', group[0][0], i, len(groups))
                self._group(session, i, group, seen)
        records = [r for r in session.records if isinstance(r, NoiseRecord)]
        noisy = sum(r.amplitude > 0 for r in records)
        session.notes.append(
            f'AddNoise: {noisy} of {len(groups)} inputs have noise'
        )

    def _group(
        self, session: Session, i: int, group: list[Port], seen: Rows
    ) -> None:
        """Decides on one tensor."""
        name, port = group[0]
        layers = [session.layers[n] for n, _ in group]
        act = layers[0].act_quantizers[port]
        halves = []
        for half in (0, 1):
            levels = by_level(seen, name, half, act.per_level, session.device)
            found = {
                k: x[:: -(-len(x) // MOST)]
                for k, x in levels.items()
                if len(x)
            }
            halves.append(found)
        if not halves[0] or not halves[1]:
            session.notes.append(
                f'{name}: its input has no noise, as half of the calibration '
                'images do not reach it'
            )
            return
        noises = self._noises(session, i, act, halves[0])
        errors = torch.stack(
            [_errors(layers, act, half, noises) for half in halves]
        ).cpu()
        chosen = errors.argmin(1)
        crossed = float(errors[0, chosen[1]] + errors[1, chosen[0]])
        plain = float(errors[:, 0].sum())
        best = int(errors.sum(0).argmin()) if crossed < plain else 0
        amplitude = ([0.0] + self.amplitudes * self.draws)[best]
        ratio = crossed / plain if best else 1.0
        session.records.append(
            NoiseRecord(name, [n for n, _ in group], amplitude, ratio)
        )
        if best:
            for n, _ in group:
                _add(session, n, noises[best])

    def _noises(
        self, session: Session, i: int, act: BaseQuantizer, rows: Levels
    ) -> Tensor:
        """Noise to try ``[N, C]``, first none."""
        low, high = act.range()
        step = ((high - low) / (2**act.bits - 1)).min()
        width = next(iter(rows.values())).shape[1]
        rng = session.rng(i)
        drawn = torch.rand(
            self.draws, 1, width, generator=rng, device=rng.device
        )
        sizes = step * step.new_tensor(self.amplitudes)
        noises = (2 * drawn - 1).to(step.device) * sizes[:, None]
        none = noises.new_zeros(1, width)
        return torch.cat([none, noises.flatten(0, 1)])


def _linear(session: Session) -> list[list[Port]]:
    """Quantized inputs of linear layers."""
    return [
        group
        for group in session.plan.groups
        if all(isinstance(session.layers[n], nn.Linear) for n, _ in group)
    ]


def _usable(session: Session, group: list[Port]) -> bool:
    name, port = group[0]
    act = session.layers[name].act_quantizers[port]
    return isinstance(act, HasRange) and may_scale(session, group)


def _errors(
    layers: list[QuantLayer], act: BaseQuantizer, rows: Levels, noises: Tensor
) -> Tensor:
    """Squared output errors of some layers with each noise.

    With the error ``e = x - (q(x + N) - N)`` of the input, an output is off
    by ``Wq e + (W - Wq) x``.

    Args:
        layers (list[QuantLayer]): That read the tensor.
        act (BaseQuantizer): Of the tensor.
        rows (dict[int, Tensor]): ``[T, C]`` of each pyramid level.
        noises (Tensor): ``[N, C]``.

    Returns:
        Tensor: ``[N]``, sums over layers, means over rows, sums over levels.
    """
    found = noises.new_zeros(len(noises), dtype=torch.float64)
    for level, x in rows.items():
        gram, cross, rest = 0.0, 0.0, 0.0
        for layer in layers:
            weight, rounded = _weights(layer)
            off = x @ (weight - rounded).mT
            gram = gram + rounded.mT @ rounded
            cross = cross + 2 * off @ rounded
            rest = rest + off.square().sum()
        for i, noise in enumerate(noises):
            e = x + noise - act(x + noise, level)
            found[i] += ((e @ gram + cross) * e).sum().add(rest) / len(x)
    return found


def _weights(layer: QuantLayer) -> tuple[Tensor, Tensor]:
    """A weight and what becomes of it, float32."""
    weight = layer.weight.detach().float()
    if layer.weight_quantizer is None:
        return weight, weight
    return weight, layer.quantized_weight().detach().float()


def _add(session: Session, name: str, noise: Tensor) -> None:
    """Adds noise to the input of a layer, and takes it out of its bias."""
    layer = session.layers[name]
    weight, rounded = _weights(layer)
    session.edit(ScaledInput.by(name, torch.ones_like(noise), -noise))
    if layer.weight_quantizer is not None:
        # the float bias has lost W N, and Wq N is what comes in
        shift = (weight - rounded).double() @ noise.double()
        layer.shift_bias(shift.to(layer.bias.dtype))
    if session.stats.means is not None:
        session.stats.means.shift(name, noise)
