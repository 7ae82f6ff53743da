# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that mixes channels of attention heads."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

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

Own = dict[str, list[Tensor]]
"""Of layers, weights and biases as they were."""

PAIRS = ('qk', 'pv')
#: how far outputs may be off by rounding, over their root mean square
CLOSE = 1e-3
#: numbers of an output that are compared
SAMPLE = 1 << 16


@PASSES.register_module()
class MixHeads(BasePass):
    """Mixes the channels of each attention head so that they quantize better.

    ``q . k`` stays the same if queries are multiplied by a matrix T and keys
    by the inverse of T, transposed. In the same way values are multiplied by
    T, and the projection behind them by its inverse. Among all T the pass
    takes the one with the least predicted error of ``q . k``: channels that
    are strong on one side and weak on the other are evened out, then
    strength is spread over all channels, as the rotations of QuaRot
    (Ashkboos et al., 2024) do. The prediction is made of second moments on
    the calibration images and of the errors of the weights that make the
    channels. T is worked into the weights, so a run costs nothing more.

    The float detector stays the same up to rounding; an attention whose
    output on the first calibration image moves by more than 0.001 of its
    size is put back, and one whose predicted error would not fall is not
    mixed. Notes say what was not mixed, and why. Records
    (``mixing``) say by how much the predicted error falls.

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
        if isinstance(pairs, str):
            raise ValueError(f'pairs must be a list, e.g. [{pairs!r}]')
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
            session.warn(
                'MixHeads: this detector has no attention whose channels can '
                'be mixed; take the pass out by mix_heads=False'
            )
            return
        with session.stage('mixing of heads'), float_mode(session.layers):
            seen = _watch(session, heads)
            before = _outputs(session, heads)
            own = _weights(session, heads)
            plans = [_plan(session, one, seen) for one in heads]
            _mix(session, plans)
            # what is wrong in one makes all behind it look wrong, and heads
            # share layers: all are put back, and the others mixed again
            while _drop_first_wrong(session, plans, before):
                _put_back(session, own)
                _mix(session, plans)
        for plan in plans:
            name, kind = plan.heads.name, plan.heads.kind
            if plan.why_not:
                note = f'MixHeads: {name} stays: {plan.why_not}'
                session.notes.append(note)
            else:
                session.records.append(MixingRecord(name, kind, plan.gain))

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
                    note = f'MixHeads: {name} stays: {one}'
                    if note not in session.notes:
                        session.notes.append(note)
        order = list(session.graph.layers)
        found.sort(key=lambda one: order.index(one.name))
        return _apart(session, found)


def _apart(session: Session, found: list[Heads]) -> list[Heads]:
    """Heads whose projection makes no channels of other heads.

    What such a projection gives would change, and could not be checked.
    """
    makers = {name for one in found for s in one.sides for name in s.makers}
    kept = []
    for one in found:
        if both := makers & set(one.readers):
            session.notes.append(
                f'MixHeads: {one.name} stays: {", ".join(sorted(both))} '
                'makes the channels of another attention'
            )
        else:
            kept.append(one)
    return kept


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
        odd (set): Ports whose number of heads is not always the same.
    """

    moments: dict[Port, tuple[Tensor, Tensor]]
    inputs: dict[str, Tensor]
    odd: set[Port]


def _watch(session: Session, heads: list[Heads]) -> Seen:
    """Predicts the calibration images."""
    sides = {side.port: side for one in heads for side in one.sides}
    sums = {p: side.nothing(session.device) for p, side in sides.items()}
    makers = {name for side in sides.values() for name in side.makers}
    squares = {
        name: torch.zeros(2, dtype=torch.float64, device=session.device)
        for name in sorted(makers)
    }

    odd: set[Port] = set()

    def take(name: str, port: str, level: int, x: Tensor) -> None:
        if (name, port) in sides and x.numel():
            rows = sides[name, port].rows(x.double())
            count, first, second = sums[name, port]
            if len(rows) != len(second):
                odd.add((name, port))
                return
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
    return Seen(moments, inputs, odd)


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


@dataclass
class Plan:
    """What is done to the heads of an attention.

    Attributes:
        heads (Heads): Which.
        mix (Tensor): T, ``(H, d, d)``, float64.
        gain (float): Predicted error as it is, over that of mixed channels.
        why_not (str): Why they are not mixed, ``''`` if they are.
    """

    heads: Heads
    mix: Tensor
    gain: float
    why_not: str = ''


def _plan(session: Session, heads: Heads, seen: Seen) -> Plan:
    """The best matrix for some heads; nothing is changed."""
    one, plain = seen.moments[heads.sides[0].port]
    one = one + _of_weights(session, heads.sides[0], seen)
    if heads.kind == 'qk':
        # An error of q is as large as its spread and is multiplied by
        # centred keys: what all keys have in common is lost in the softmax.
        # An error of k is multiplied by the whole query, its mean included.
        # Both share the keys' moments, so the queries' add up.
        other, _ = seen.moments[heads.sides[1].port]
        other = other + _of_weights(session, heads.sides[1], seen)
        one = one + plain
    else:
        other = _read(session, heads)
    mix = mixing(one, other)
    plan = Plan(heads, mix, gain(one, other, mix))
    if seen.odd & {side.port for side in heads.sides}:
        plan.why_not = (
            'its heads lie along the axis of images, whose size changes'
        )
    elif plan.gain < 1:
        plan.why_not = (
            'its predicted error would not fall: channels are already even'
        )
    return plan


def _mix(session: Session, plans: list[Plan]) -> None:
    """Changes weights as planned."""
    layers = session.layers
    for plan in plans:
        if plan.why_not:
            continue
        matrices = plan.mix, torch.linalg.inv(plan.mix).mT
        for side, matrix in zip(plan.heads.sides, matrices, strict=False):
            for name, places in side.makers.items():
                mixed_rows(layers[name], places, matrix)
        for name, places in plan.heads.readers.items():
            mixed_columns(layers[name], places, plan.mix)


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


def _weights(session: Session, heads: list[Heads]) -> Own:
    """Copies of all weights and biases that mixing may change."""
    names = {name for one in heads for name in one.changed}
    return {
        name: [p.clone() for p in _parameters(session.layers[name])]
        for name in names
    }


def _parameters(layer: nn.Module) -> list[Tensor]:
    return [p for p in (layer.weight, layer.bias) if p is not None]


def _put_back(session: Session, own: Own) -> None:
    """Gives weights and biases their values back."""
    for name, values in own.items():
        parameters = _parameters(session.layers[name])
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _drop_first_wrong(
    session: Session, plans: list[Plan], before: dict[str, Tensor]
) -> bool:
    """Says of the first heads with other outputs than before that they stay.

    Returns:
        bool: Whether there are any.
    """
    mixed = [plan for plan in plans if not plan.why_not]
    after = _outputs(session, [plan.heads for plan in mixed])
    for plan in mixed:
        plan.why_not = _wrong(plan.heads, before, after)
        if plan.why_not:
            return True
    return False


def _wrong(
    heads: Heads, before: dict[str, Tensor], after: dict[str, Tensor]
) -> str:
    """What is wrong with the outputs of mixed heads, ``''`` if nothing is."""
    for name in heads.ends:
        y, given = after.get(name), before.get(name)
        if y is None or given is None:
            return 'the first calibration image does not reach it'
        off = (y - given).square().mean().sqrt()
        size = given.square().mean().sqrt()
        if not off <= CLOSE * size:
            return (
                f'mixing moved its output by {off / size:.2g} of its size '
                f'({CLOSE:g} is allowed)'
            )
    return ''
