# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weights and inputs whose widths may change."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ...calibration import Session
from ...errors import QuantConfigError
from ...layers import QuantLayer
from ...plan import build_quantizer, hits
from ...quantizers import BaseQuantizer, PerInstance
from ...structures import Port, QuantSpec

#: what operands are, and how these are called in messages
NAMES = dict(weight='weights', input='inputs')
KINDS = tuple(NAMES)
#: what ChannelGroups gives its parts, or what follows from the groups
_GIVEN = ('axis', 'granularity', 'group_size', 'per_level')


@dataclass(frozen=True)
class Operand:
    """A weight or an input, and the units that have widths of their own.

    Attributes:
        kind (str): ``'weight'`` or ``'input'``.
        holders (tuple[Port, ...]): Layer and tensor of all that have it: the
            weight of tied layers, or ports that share a quantizer.
        spec (QuantSpec): As it is planned.
        widths (tuple[int, ...]): Bits that it may have, rising.
        sizes (tuple[int, ...]): Elements of each unit; of an input, those
            of an image as it was surveyed.
        channels (int, optional): Channels of a unit, the last of a weight
            may have fewer; None if it is one unit.
    """

    kind: str
    holders: tuple[Port, ...]
    spec: QuantSpec
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    channels: int | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return '.'.join(self.holders[0])

    def spec_of(self, widths: Sequence[int]) -> QuantSpec:
        """What it becomes with some widths.

        Args:
            widths (Sequence[int]): Of each unit.
        """
        if self.channels is None:
            return replace(self.spec, bits=widths[0])
        args = self.spec.args
        per_channel = args.get('granularity') == 'channel'
        if self.kind == 'weight' and per_channel and len(set(widths)) == 1:
            return replace(self.spec, bits=widths[0])
        part = {k: v for k, v in args.items() if k not in _GIVEN}
        groups: dict[str, Any] = dict(
            widths=list(widths),
            channels=self.channels,
            of=dict(type=self.spec.type, **part),
        )
        if args.get('per_level'):
            groups['per_level'] = True
        return QuantSpec('ChannelGroups', max(widths), groups)

    def build(self, layers: dict[str, QuantLayer], bits: int) -> BaseQuantizer:
        """A quantizer of one width, without a range, on the CPU.

        Args:
            layers (dict[str, QuantLayer]): The twins by name.
            bits (int): Of all units.
        """
        name, tensor = self.holders[0]
        spec = self.spec_of([bits] * len(self.sizes))
        return build_quantizer(spec, layers[name], tensor, name)

    def storage(self, layers: dict[str, QuantLayer], bits: int) -> list[int]:
        """What each unit of a weight takes in bits, codes and parameters.

        Args:
            layers (dict[str, QuantLayer]): The twins by name.
            bits (int): Width of all units.
        """
        name, tensor = self.holders[0]
        shape = list(layers[name].weight.shape)
        axis = self.axis(layers)
        channel = prod(shape) // shape[axis]
        args = dict(self.spec.args)
        if self.channels is not None:
            args['granularity'] = 'channel'  # as ChannelGroups has it
        spec = replace(self.spec, bits=bits, args=args)
        quantizer = build_quantizer(spec, layers[name], tensor, name)
        found = []
        for size in self.sizes:
            shape[axis] = size // channel
            found.append(quantizer.storage_bits(shape))
        return found

    def axis(self, layers: dict[str, QuantLayer]) -> int:
        """Axis of the channels."""
        layer = layers[self.holders[0][0]]
        if self.kind == 'input':
            return layer.act_axis
        assert layer.weight_axis is not None
        return layer.weight_axis


@dataclass(frozen=True)
class Wanted:
    """Which operands there are to be, and in how many units.

    Attributes:
        scope (tuple[str, ...]): Patterns of rules.
        base (dict[str, int]): Width of each kind that is not pinned.
        floor (dict[str, int]): Least width of each kind.
        most (int): Greatest width.
        channels (int, optional): Channels of a unit, None: whole tensors.
    """

    scope: tuple[str, ...]
    base: dict[str, int]
    floor: dict[str, int]
    most: int
    channels: int | None

    def find(self, session: Session) -> list[Operand]:
        """All operands, weights first, in execution order.

        Args:
            session (Session): With plan and quantizers.

        Raises:
            QuantConfigError: If there are none, one can have one width
                only, or one cannot be parted in groups of channels.
        """
        found = [*self._weights(session), *self._inputs(session)]
        if not found:
            raise QuantConfigError(
                'AllocateBits: the rules leave nothing to allocate: no '
                f'tensor in scope={list(self.scope)} has the widths of '
                f'quant_cfg.bits ({self.base["weight"]} for weights, '
                f'{self.base["input"]} for inputs); give another scope, or '
                'leave out the rules that set bits'
            )
        return found

    def _inside(self, session: Session, port: Port) -> bool:
        name, tensor = port
        rule = dict(match=list(self.scope))
        return tensor in hits(rule, session.graph.layers[name])[1]

    def _weights(self, session: Session) -> list[Operand]:
        layers = session.layers
        tied: dict[int, list[Port]] = {}
        for name, plan in session.plan.layers.items():
            if plan.weight is not None:
                key = id(layers[name].weight)
                tied.setdefault(key, []).append((name, 'weight'))
        found = []
        for holders in tied.values():
            name = holders[0][0]
            spec = session.plan.layers[name].weight
            assert spec is not None
            if spec.bits != self.base['weight']:
                continue
            if not all(self._inside(session, port) for port in holders):
                continue
            layer = layers[name]
            total = layer.weight.shape[layer.weight_axis]
            one = Operand('weight', tuple(holders), spec, (), (total,))
            size = layer.weight.numel() // total
            found.append(self._complete(session, one, total, size))
        return found

    def _inputs(self, session: Session) -> list[Operand]:
        found = []
        for group in session.plan.groups:
            name, port = group[0]
            spec = session.plan.layers[name].acts[port]
            assert spec is not None
            if spec.bits != self.base['input']:
                continue
            if not all(self._inside(session, port) for port in group):
                continue
            one = Operand('input', tuple(group), spec, (), (1,))
            total, size = _channels_of(session, group)
            found.append(self._complete(session, one, total, size))
        return found

    def _complete(
        self, session: Session, one: Operand, total: int, size: int
    ) -> Operand:
        """With widths and units.

        Args:
            session (Session): With plan and quantizers.
            one (Operand): Without them.
            total (int): Channels of the tensor, 0 if that is not known.
            size (int): Elements of a channel, or of all if that is not
                known.
        """
        layers = session.layers
        quantizer = one.build(layers, one.spec.bits)
        floor = self.floor[one.kind]
        widths = tuple(
            b for b in quantizer.allowed_bits if floor <= b <= self.most
        )
        if len(widths) < 2:
            has = ', '.join(map(str, quantizer.allowed_bits))
            raise QuantConfigError(
                f'AllocateBits: {one.name}: a {one.spec.type} has {has} bits, '
                f'which leaves no choice from {floor} to {self.most}; leave '
                'the layer out by scope, or give it another quantizer'
            )
        channels = self._group(session, one, quantizer, total)
        if channels is None:
            sizes = (max(1, total or 1) * max(1, size),)
            return replace(one, widths=widths, sizes=sizes)
        counts = [
            min(channels, total - at) for at in range(0, total, channels)
        ]
        one = replace(
            one,
            widths=widths,
            sizes=tuple(n * size for n in counts),
            channels=channels,
        )
        try:
            name, tensor = one.holders[0]
            rest = len(counts) - 1
            for bits in widths[1:]:
                spec = one.spec_of([widths[0], *[bits] * rest])
                build_quantizer(spec, layers[name], tensor, name)
        except QuantConfigError as error:
            raise QuantConfigError(
                f'AllocateBits: {one.name} cannot have groups of {channels} '
                f'channels: {error}; use channels=None, or give it another '
                'quantizer'
            ) from error
        return one

    def _group(
        self,
        session: Session,
        one: Operand,
        quantizer: BaseQuantizer,
        total: int,
    ) -> int | None:
        """Channels of a unit; None where the tensor is one."""
        if self.channels is None or total <= self.channels:
            return None
        kind = quantizer.granularity.kind
        if one.kind == 'weight':
            return self.channels if kind != 'group' else None
        holders = [session.layers[name] for name, _ in one.holders]
        if any(m.weight_axis is None for m in holders):
            return None  # a product's channels are its heads
        if len({m.act_axis for m in holders}) > 1:
            return None
        if kind != 'tensor' and not isinstance(quantizer, PerInstance):
            return None  # it has groups of its own
        equal = largest_divisor(total, self.channels)
        return equal if 4 * equal >= self.channels else None


def largest_divisor(total: int, most: int) -> int:
    """The largest divisor of a number that is not above another."""
    return next(d for d in range(min(total, most), 0, -1) if total % d == 0)


def _channels_of(session: Session, group: list[Port]) -> tuple[int, int]:
    """Channels of an input, and its elements a channel in an image.

    What ports share is counted once, all calls together. Zero channels where
    calls differ in them.
    """
    graph, layers = session.graph, session.layers
    seen = {
        call.inputs[graph.layers[name].ports.index(port)]: layers[name]
        for name, port in group
        for call in graph.layers[name].calls
    }
    shapes = {i: graph.values[i].shape for i in seen}
    images = [v.shape[0] for v in graph.values.values() if v.is_input]
    count = sum(prod(shape) for shape in shapes.values() if shape)
    count = max(1, count // max(1, *images, 1))
    channels = {
        shape[layer.act_axis] if len(shape) >= abs(layer.act_axis) else 0
        for shape, layer in zip(shapes.values(), seen.values(), strict=True)
    }
    if len(channels) > 1 or 0 in channels:
        return 0, count
    total = channels.pop()
    return total, max(1, count // total)
