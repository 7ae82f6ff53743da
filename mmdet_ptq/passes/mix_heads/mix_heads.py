# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that mixes channels of attention heads."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from ...calibration import Session, observing
from ...checks import one_of
from ...errors import NumericError
from ...layers import float_mode
from ...records import MixingRecord
from ...registry import PASSES
from ...structures import Port
from ...surgery import input_columns, output_rows
from ..base import BasePass
from .heads import Heads, Side, heads_of
from .mixing import gain, mixed_columns, mixed_rows, mixing

Mixed = tuple[Heads, list[Tensor]]
"""Heads, and their weights and biases as they were."""

PAIRS = ('qk', 'pv')
#: how far outputs may be off by rounding, over their root mean square
CLOSE = 1e-3
#: numbers of an output that are compared
SAMPLE = 1 << 16


@PASSES.register_module()
class MixHeads(BasePass):
    """Mixes the channels of each attention head so that they quantize better.

    Queries become ``T q`` and keys ``T^-T k``, which leaves ``q . k`` as it
    is, and values ``T v``, whose projection becomes ``W T^-1``. T balances
    what quantization does to both sides and spreads it evenly over the
    channels: it takes strong channels apart, as the rotations of QuaRot
    (Ashkboos et al., 2024) do, and is the best of all matrices, orthogonal
    or not, for the second moments of calibration images and the errors of
    the weights that make the channels. It goes into weights and costs
    nothing later. The float detector stays the same up to
    rounding; an attention whose outputs on the first calibration image say
    otherwise is put back. Notes say what was not mixed, and why.

    Args:
        pairs (list[str], optional): What is mixed. ``'qk'``: queries and
            keys; ``'pv'``: values and the projection behind them. Defaults
            to None: both.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'folded'})
    gives: ClassVar[frozenset[str]] = frozenset({'mixed'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'scaled', 'observers', 'ranges', 'learned'}
    )
    for_attention: ClassVar[bool] = True

    def __init__(self, pairs: list[str] | None = None) -> None:
        self.pairs = PAIRS if pairs is None else tuple(pairs)
        for pair in self.pairs:
            one_of('pairs', pair, PAIRS)
        if not self.pairs:
            raise ValueError('pairs is empty: nothing would be mixed')

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        heads = self._heads(session)
        if not heads:
            session.notes.append(
                'MixHeads: this detector has no attention whose channels can '
                'be mixed'
            )
            return
        with session.stage('mixing of heads'), float_mode(session.layers):
            seen = _watch(session, heads)
            before = _outputs(session, heads)
            mixed = [(one, _mix(session, one, seen)) for one in heads]
            # what is wrong in one makes all behind it look wrong
            while wrong := _first_wrong(session, mixed, before):
                mixed = [one for one in mixed if one is not wrong]
                _put_back(session, *wrong)

    def _heads(self, session: Session) -> list[Heads]:
        found = []
        for scaling in session.graph.find_scalings()[0]:
            if scaling.kind in self.pairs:
                one = heads_of(scaling, session.layers)
                if isinstance(one, Heads) and not _quantized(session, one):
                    one = 'an operand stays float'
                if isinstance(one, Heads):
                    found.append(one)
                else:
                    name = next(iter(scaling.ports))[0]
                    session.notes.append(f'MixHeads: {name} stays: {one}')
        order = list(session.graph.layers)
        return sorted(found, key=lambda one: order.index(one.name))


def _quantized(session: Session, heads: Heads) -> bool:
    """Whether the operands that would be mixed are quantized."""
    return all(
        port in session.layers[name].act_quantizers
        for name, port in (side.port for side in heads.sides)
    )


@dataclass(frozen=True)
class Seen:
    """What calibration images show; 0 where no image came by.

    Attributes:
        moments (dict): For each port the second moments of its channels,
            ``(H, d, d)``, float64, about the mean and about 0.
        inputs (dict): Of each maker the mean square of its inputs, float64.
    """

    moments: dict[Port, tuple[Tensor, Tensor]]
    inputs: dict[str, Tensor]


def _watch(session: Session, heads: list[Heads]) -> Seen:
    """Predicts the calibration images."""
    sides = {side.port: side for one in heads for side in one.sides}
    sums = {p: side.nothing(session.device) for p, side in sides.items()}
    makers = {name for side in sides.values() for name in side.makers}
    squares = {
        name: torch.zeros(2, dtype=torch.float64, device=session.device)
        for name in sorted(makers)
    }

    def take(name: str, port: str, level: int, x: Tensor) -> None:
        if (name, port) in sides and x.numel():
            rows = sides[name, port].rows(x.double())
            count, first, second = sums[name, port]
            count += rows.shape[1]
            first += rows.sum(1)
            second += rows.mT @ rows
        elif name in squares:
            squares[name][0] += x.numel()
            squares[name][1] += x.double().square().sum()

    names = {*squares, *(one.name for one in heads)}
    with observing({n: session.layers[n] for n in names}, take):
        session.feed.predict()
    moments = {}
    for port, (count, first, second) in sums.items():
        if get_world_size() > 1:
            for tensor in (count, first, second):
                all_reduce(tensor)
        if not bool(torch.isfinite(second).all()):
            raise NumericError(
                f'{port[0]}: an input holds NaN or Inf on a calibration image'
            )
        count = count.clamp(min=1)
        mean, plain = (first / count).cpu(), (second / count).cpu()
        moments[port] = plain - mean[:, :, None] * mean[:, None], plain
    inputs = {}
    for name, both in squares.items():
        if get_world_size() > 1:
            all_reduce(both)
        inputs[name] = (both[1] / both[0].clamp(min=1)).cpu()
    return Seen(moments, inputs)


def _outputs(session: Session, heads: list[Heads]) -> dict[str, Tensor]:
    """A part of what heads give to others, on the first image."""
    found: dict[str, Tensor] = {}

    def take(name: str, level: int, y: Tensor) -> None:
        if y.numel() and name not in found:
            found[name] = y.flatten()[:: -(-y.numel() // SAMPLE)].cpu()

    ends = {n: session.layers[n] for one in heads for n in one.ends}
    with observing(ends, outputs=take):
        session.feed.run_raw(1)
    return found


def _mix(session: Session, heads: Heads, seen: Seen) -> list[Tensor]:
    """Mixes; returns weights and biases as they were."""
    layers = session.layers
    own = [p.clone() for p in _parameters(session, heads)]
    one, plain = seen.moments[heads.sides[0].port]
    one = one + _of_weights(session, heads.sides[0], seen)
    if heads.kind == 'qk':
        # what all keys have in common is lost in the softmax
        other, _ = seen.moments[heads.sides[1].port]
        other = other + _of_weights(session, heads.sides[1], seen)
        one = one + plain
    else:
        other = _read(session, heads)
    mix = mixing(one, other)
    session.records.append(
        MixingRecord(heads.name, heads.kind, gain(one, other, mix))
    )
    matrices = mix, torch.linalg.inv(mix).mT
    for side, matrix in zip(heads.sides, matrices, strict=False):
        for name, places in side.makers.items():
            mixed_rows(layers[name], places, matrix)
    for name, places in heads.readers.items():
        mixed_columns(layers[name], places, mix)
    return own


def _of_weights(session: Session, side: Side, seen: Seen) -> Tensor:
    """What has to be added to moments for the errors of makers' weights.

    An error of a weight is in proportion to the square of its row, so that
    of an output channel is in proportion to ``(W W^T)_ii`` times the mean
    square of the inputs; and to ``4^-bits``, as that of the operand is.

    Returns:
        Tensor: (H, d, d), float64.
    """
    name, port = side.port
    operand = session.layers[name].act_quantizers[port]
    found = torch.zeros_like(seen.moments[side.port][0])
    for maker, places in side.makers.items():
        layer = session.layers[maker]
        if layer.weight_quantizer is not None:
            rows = output_rows(layer).double().cpu()[places]
            share = 4.0 ** (operand.bits - layer.weight_quantizer.bits)
            found += share * seen.inputs[maker] * rows @ rows.mT
    return found


def _read(session: Session, heads: Heads) -> Tensor:
    """``W^T W`` of what reads the channels of each head, (H, d, d)."""
    found = torch.zeros(())
    for name, places in heads.readers.items():
        columns = input_columns(session.layers[name]).double().cpu()[places]
        found = found + columns @ columns.mT
    return found


def _parameters(session: Session, heads: Heads) -> list[Tensor]:
    """Weights and biases that mixing changes."""
    found = []
    for name in heads.changed:
        layer = session.layers[name]
        found += [p for p in (layer.weight, layer.bias) if p is not None]
    return found


def _first_wrong(
    session: Session, mixed: list[Mixed], before: dict[str, Tensor]
) -> Mixed | None:
    """The first heads with other outputs than before, if there are any."""
    after = _outputs(session, [heads for heads, _ in mixed])
    for one in mixed:
        for name in one[0].ends:
            y, given = after.get(name), before.get(name)
            if y is None or given is None:
                return one
            off = (y - given).square().mean().sqrt()
            if not off <= CLOSE * given.square().mean().sqrt():
                return one
    return None


def _put_back(session: Session, heads: Heads, own: list[Tensor]) -> None:
    """Gives weights and biases their values back."""
    for parameter, value in zip(_parameters(session, heads), own, strict=True):
        parameter.copy_(value)
    session.notes.append(
        f'MixHeads: {heads.name} stays: the first calibration image does not '
        'reach it, or shows that its outputs would change'
    )
    session.records[:] = [
        r
        for r in session.records
        if not (isinstance(r, MixingRecord) and r.unit == heads.name)
    ]
