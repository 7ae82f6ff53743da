# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Statistics of activations from float calibration forwards."""

from typing import Any, ClassVar

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import Tensor

from ..calibration import ChannelMeans, Session, Statistics, observing
from ..errors import NumericError, QuantConfigError
from ..layers import QuantLayer, float_mode
from ..observers import BaseObserver, Batch, fetch
from ..quantizers import BaseQuantizer, PerInstance
from ..registry import OBSERVERS, PASSES, build_from
from ..structures import LayerGraph, Port
from .base import BasePass

ACT_OBSERVER = dict(type='LpObserver', p=2.4)
INSTANCE_OBSERVER = dict(type='InstanceObserver', iterations=300, period=75)


@PASSES.register_module()
class Observe(BasePass):
    """Runs the calibration images once, float, and keeps what it saw.

    One observer for each activation quantizer sees the float tensors over
    all pyramid levels and all layers that share the quantizer. Means of the
    layers' inputs are kept too if a later pass needs them. Ports that no
    image reaches stay float, and are noted.

    Args:
        observer (dict): Observer of activations. Defaults to
            ``dict(type='LpObserver', p=2.4)``.
        instance_observer (dict): Observer of activations whose grid each
            image chooses anew: those of an ``InstanceGroupQuantizer``.
            Defaults to ``dict(type='InstanceObserver', iterations=300,
            period=75)``.
    """

    gives: ClassVar[frozenset[str]] = frozenset({'observers', 'means'})
    refuses: ClassVar[frozenset[str]] = frozenset({'learned'})

    def __init__(
        self,
        observer: dict = ACT_OBSERVER,
        instance_observer: dict = INSTANCE_OBSERVER,
    ) -> None:
        self.observer = observer
        self.instance_observer = instance_observer
        build_from(OBSERVERS, observer, 'Observe.observer')
        build_from(OBSERVERS, instance_observer, 'Observe.instance_observer')

    def _observer_of(self, quantizer: BaseQuantizer) -> dict:
        if isinstance(quantizer, PerInstance):
            return self.instance_observer
        return self.observer

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`."""
        for name, layer in session.layers.items():
            for port, quantizer in layer.act_quantizers.items():
                observer = build_from(OBSERVERS, self._observer_of(quantizer))
                why = observer.why_not(quantizer)
                if why:
                    raise QuantConfigError(f'Observe: {name}.{port}: {why}')

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        _check_weights(session.layers)
        stats = session.stats
        stats.start(
            session.layers,
            session.plan.groups,
            self._observer_of,
            'means' in session.wanted,
            session.device,
        )
        done = session.state.get('images', 0)
        if done:
            stats.load_state_dict(
                session.state['stats'], session.layers, session.device
            )
        session.state['images'] = done
        taps = _Taps(session.graph, stats)

        def after(i: int) -> None:
            taps.end_batch()
            session.state['images'] = i + 1

        def export() -> dict[str, Any]:
            images = session.state['images']
            return dict(images=images, stats=stats.state_dict())

        with (
            session.resumable(export),
            session.stage('calibration'),
            observing(session.layers, inputs=taps.see),
            float_mode(session.model),
        ):
            session.feed.predict(done, after)
            merge_ranks(stats.observers, stats.means)
            self._reach_the_rest(session, taps)
        _drop_unreached(session)

    def _reach_the_rest(self, session: Session, taps: '_Taps') -> None:
        """A prediction skips the mask head when nothing is found."""
        stats = session.stats
        unseen = [o for o in stats.observers if not o.seen]
        if not unseen or 'tensor' not in session.graph.modes:
            return
        means = stats.means.for_unseen() if stats.means else None
        taps.only(unseen, means)
        # a raw forward takes every proposal: one image is plenty
        session.feed.run_raw(1)
        taps.end_batch()
        merge_ranks(unseen, means)
        if means is not None:
            stats.means.add(means.state_dict())


def _drop_unreached(session: Session) -> None:
    """Leaves ports float that no image reached, and says so."""
    stats = session.stats
    unreached = [g for g in stats.groups if not stats.of(g[0]).seen]
    if unreached:
        names = [name for group in unreached for name, _ in group]
        session.warn(unreached_line(names))
    for group in unreached:
        stats.drop(group)
        _leave_float(session, group)


def _check_weights(layers: dict[str, QuantLayer]) -> None:
    found = {
        name: torch.isfinite(layer.weight).all()
        for name, layer in layers.items()
        if layer.weight_quantizer is not None
    }
    if not found:
        return
    for name, fine in zip(
        found, torch.stack(list(found.values())).tolist(), strict=True
    ):
        if not fine:
            raise NumericError(f'{name}: the weight has NaN or Inf values')


def unreached_line(layers: list[str]) -> str:
    """One line for all layers that calibration did not reach.

    Args:
        layers (list[str]): Their names.

    Returns:
        str: Counts them for each head.
    """
    heads: dict[str, int] = {}
    for name in dict.fromkeys(layers):
        parts = name.split('.')
        ends = [i for i, p in enumerate(parts) if p.endswith('head')]
        head = '.'.join(parts[: ends[-1] + 1] if ends else parts[:1])
        heads[head] = heads.get(head, 0) + 1
    counts = ', '.join(f'{head} ({n})' for head, n in heads.items())
    return (
        f'no calibration image reached these layers, whose inputs stay '
        f'float: {counts}; calibrate on images in which something is detected'
    )


def _leave_float(session: Session, group: list[Port]) -> None:
    """Takes the quantizers off ports that no calibration data reached."""
    for name, port in group:
        session.replace(name, port, None)
        layer = session.plan.layers[name]
        if layer.why_float:
            layer.why_float = 'no calibration data reached it'
        session.notes.append(
            f'{name}: its {port} stays float, no calibration data reached it'
        )


def merge_ranks(
    observers: list[BaseObserver], means: ChannelMeans | None
) -> None:
    """Combines the statistics of all ranks, the same on every rank.

    Args:
        observers (list[BaseObserver]): This rank's; changed in place.
        means (ChannelMeans, optional): This rank's; changed in place.
    """
    if get_world_size() == 1:
        return
    mine = get_rank()
    states = all_gather_object([o.state_dict() for o in observers])
    for i, observer in enumerate(observers):
        observer.merge([s[i] for rank, s in enumerate(states) if rank != mine])
    if means is None:
        return
    for rank, state in enumerate(all_gather_object(means.state_dict())):
        if rank != mine:
            means.add(state)


def readers(graph: LayerGraph, group: list[Port]) -> list[Port]:
    """Ports that together see every tensor of a group, few of them twice.

    Those that a prediction calls come first: calibration predicts.

    Args:
        graph (LayerGraph): The surveyed forward.
        group (list[Port]): Ports that share a quantizer.

    Returns:
        list[Port]: Some of the group.
    """
    seen: set[int] = set()
    found = []
    for name, port in sorted(group, key=lambda p: p[0] not in graph.predicted):
        node = graph.layers[name]
        at = node.ports.index(port)
        values = {call.inputs[at] for call in node.calls}
        if not values <= seen:
            seen |= values
            found.append((name, port))
    return found


class _Taps:
    """Routes the inputs of layers to the observer of their quantizer."""

    def __init__(self, graph: LayerGraph, stats: Statistics) -> None:
        self.stats = stats
        self.means = stats.means
        self.active = {id(o) for o in stats.observers}
        self.owner = {
            port: observer
            for group, observer in zip(
                stats.groups, stats.observers, strict=True
            )
            for port in readers(graph, group)
        }

    def only(
        self, observers: list[BaseObserver], means: ChannelMeans | None
    ) -> None:
        """From now on feeds only these."""
        self.active = {id(o) for o in observers}
        self.means = means

    def see(self, name: str, port: str, level: int, x: Tensor) -> None:
        """Takes one input of a layer into account."""
        if x.numel() == 0:
            return
        if port == 'input' and self.means is not None:
            self.means.observe(name, x)
        observer = self.owner.get((name, port))
        if id(observer) not in self.active:
            return
        observer.observe(x, level)

    def end_batch(self) -> None:
        """Takes in what the batch has added.

        Raises:
            NumericError: If there was NaN or Inf; says where it came first.
        """
        batch = Batch(self.stats.observers)
        means = self.means.waiting if self.means is not None else []
        # of all that an image leaves, a GPU is asked once
        found = fetch([*batch.extremes, *means])
        extremes = len(batch.extremes)
        if self.means is not None:
            self.means.settle(found[extremes:])
        strange = {id(o) for o in batch.settle(found[:extremes])}
        for (name, port), observer in self.owner.items():
            if id(observer) in strange:
                raise NumericError(
                    f'{name}: NaN or Inf in its {port} during calibration; '
                    'the float model overflows on this image'
                )
