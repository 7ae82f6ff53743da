# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges of weights and activations from float calibration forwards."""

from functools import partial

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import Tensor

from ..calibration import ChannelMeans, Session
from ..errors import NumericError
from ..layers import QuantLayer, float_mode
from ..observers import BaseObserver, LpObserver, search_weight_range
from ..quantizers import BaseQuantizer
from ..registry import OBSERVERS, PASSES, build_from
from ..structures import LayerGraph, Port


@PASSES.register_module()
class InitRanges:
    """Sets the range of every quantizer.

    Activations: one observer for each quantizer sees the float tensors of
    the calibration images, over all pyramid levels and all layers that
    share the quantizer. Weights: from the tensor itself.

    Args:
        observer (dict): Observer of activations. Defaults to
            ``dict(type='LpObserver', p=2.4)``.
        weight_observer (dict): Observer of weights; an ``LpObserver``
            searches each channel exactly. Defaults to
            ``dict(type='LpObserver', p=2.0)``.
        correct_bias (bool): Take the mean output error of the quantized
            weights out of the biases. Defaults to False.
    """

    structural = False

    def __init__(
        self,
        observer: dict | None = None,
        weight_observer: dict | None = None,
        correct_bias: bool = False,
    ) -> None:
        self.observer = observer or dict(type='LpObserver', p=2.4)
        self.weight_observer = weight_observer or dict(
            type='LpObserver', p=2.0
        )
        self.correct_bias = correct_bias
        for name in ('observer', 'weight_observer'):
            build_from(OBSERVERS, getattr(self, name), f'InitRanges.{name}')

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """Runs the calibration images once, float."""
        with session.stage('weight ranges'):
            self._weights(session)
        self._activations(session)

    def _weights(self, session: Session) -> None:
        layers = session.layers
        quantized = [n for n, p in session.plan.layers.items() if p.weight]
        for i, name in enumerate(quantized):
            session.progress('weight ranges', name, i, len(quantized))
            quantizer = layers[name].weight_quantizer
            weight = layers[name].weight.detach()
            if not torch.isfinite(weight).all():
                raise NumericError(f'{name}: the weight has NaN or Inf values')
            if not quantizer.fit(weight):
                quantizer.set_range(*self._weight_range(weight, quantizer))

    def _weight_range(
        self, weight: Tensor, quantizer: BaseQuantizer
    ) -> tuple[Tensor, Tensor]:
        observer = build_from(OBSERVERS, self.weight_observer)
        if isinstance(observer, LpObserver):
            return search_weight_range(weight, quantizer, p=observer.p)
        observer.bind(quantizer.granularity)
        observer.observe(weight)
        observer.end_image()
        return observer.ranges(quantizer)

    def _activations(self, session: Session) -> None:
        layers = session.layers
        groups = session.plan.groups
        observers = [self._new_observer(layers, g) for g in groups]
        means = ChannelMeans(layers if self.correct_bias else {})
        self._resume(session, observers, means)
        taps = _Taps(session, layers, observers, means)
        done = session.state.get('images', 0)

        def after(i: int) -> None:
            for observer in observers:
                observer.end_image()
            session.state['images'] = i + 1

        session.state['export'] = lambda: {
            'images': session.state.get('images', 0),
            'observers': [o.state_dict() for o in observers],
            'means': means.state_dict(),
        }
        with session.stage('calibration'), taps, float_mode(session.model):
            session.feed(done, after)
            _merge(observers, means)
            unseen = [o for o in observers if not o.seen]
            if unseen:
                # a prediction skips the mask head when nothing is found
                extra = means.for_unseen()
                taps.only(unseen, extra)
                # a raw forward takes every proposal: one image is plenty
                session.extra_feed(1)
                for observer in unseen:
                    observer.end_image()
                _merge(unseen, extra)
                means.add(extra.state_dict())
        session.state.pop('export')
        with session.stage('activation ranges'):
            self._finish(session, layers, observers)
            self.refine(session, observers)
            means.correct()

    def refine(self, session: Session, observers: list[BaseObserver]) -> None:
        """For passes that go on from here: nothing more is done."""

    def _new_observer(
        self, layers: dict[str, QuantLayer], group: list[Port]
    ) -> BaseObserver:
        observer = build_from(OBSERVERS, self.observer)
        quantizer = _quantizer(layers, group)
        levels = layers[group[0][0]].levels if quantizer.per_level else 1
        observer.bind(quantizer.granularity, levels)
        return observer

    def _resume(
        self,
        session: Session,
        observers: list[BaseObserver],
        means: ChannelMeans,
    ) -> None:
        if 'means' in session.state:
            means.add(session.state['means'])
        for observer, state in zip(
            observers, session.state.get('observers', []), strict=False
        ):
            observer.load_state_dict(state)

    def _finish(
        self,
        session: Session,
        layers: dict[str, QuantLayer],
        observers: list[BaseObserver],
    ) -> None:
        for i, (group, observer) in enumerate(
            zip(session.plan.groups, observers, strict=True)
        ):
            session.progress(
                'activation ranges', group[0][0], i, len(observers)
            )
            if observer.seen:
                quantizer = _quantizer(layers, group)
                quantizer.set_range(*observer.ranges(quantizer))
            else:
                _leave_float(session, layers, group)


def _quantizer(
    layers: dict[str, QuantLayer], group: list[Port]
) -> BaseQuantizer:
    name, port = group[0]
    return layers[name].act_quantizers[port]


def _leave_float(
    session: Session, layers: dict[str, QuantLayer], group: list[Port]
) -> None:
    """Takes the quantizers off ports that no calibration data reached."""
    for name, port in group:
        del layers[name].act_quantizers[port]
        layer = session.plan.layers[name]
        layer.acts[port] = None
        if layer.weight is None and not any(layer.acts.values()):
            layer.why_float = 'no calibration data reached it'
        session.notes.append(
            f'{name}: its {port} stays float, no calibration data reached it'
        )
    session.plan.groups = [g for g in session.plan.groups if g != group]


def _merge(observers: list[BaseObserver], means: ChannelMeans) -> None:
    """Combines the statistics of all ranks, the same on every rank."""
    if get_world_size() == 1:
        return
    mine = get_rank()
    states = all_gather_object([o.state_dict() for o in observers])
    for i, observer in enumerate(observers):
        observer.merge([s[i] for rank, s in enumerate(states) if rank != mine])
    for rank, state in enumerate(all_gather_object(means.state_dict())):
        if rank != mine:
            means.add(state)


def _readers(graph: LayerGraph, group: list[Port]) -> list[Port]:
    """Ports that together see every tensor of a group, few of them twice."""
    seen: set[int] = set()
    readers = []
    for name, port in group:
        node = graph.layers[name]
        at = node.ports.index(port)
        values = {call.inputs[at] for call in node.calls}
        if not values <= seen:
            seen |= values
            readers.append((name, port))
    return readers


class _Taps:
    """Routes the inputs of layers to the observer of their quantizer."""

    def __init__(
        self,
        session: Session,
        layers: dict[str, QuantLayer],
        observers: list[BaseObserver],
        means: ChannelMeans,
    ) -> None:
        self.layers = layers
        self.means = means
        self.observers = observers
        self.active = set(range(len(observers)))
        self.owner = {
            port: i
            for i, group in enumerate(session.plan.groups)
            for port in _readers(session.graph, group)
        }

    def only(self, observers: list[BaseObserver], means: ChannelMeans) -> None:
        """From now on feeds only these."""
        wanted = {id(o) for o in observers}
        self.active = {
            i for i, o in enumerate(self.observers) if id(o) in wanted
        }
        self.means = means

    def __enter__(self) -> None:
        for name, layer in self.layers.items():
            layer.tap = partial(self._tap, name, layer)

    def __exit__(self, *_: object) -> None:
        for layer in self.layers.values():
            layer.tap = None

    def _tap(
        self, name: str, layer: QuantLayer, port: str, level: int, x: Tensor
    ) -> None:
        if port == 'input':
            self.means.observe(name, x)
        group = self.owner.get((name, port))
        if group is None or group not in self.active or x.numel() == 0:
            return
        if not layer.act_quantizers[port].per_level:
            level = 0
        try:
            self.observers[group].observe(x, level)
        except NumericError as error:
            raise NumericError(
                f'{name}: NaN or Inf in its {port} during calibration; the '
                'float model overflows on this image'
            ) from error
