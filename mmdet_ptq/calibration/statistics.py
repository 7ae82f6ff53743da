# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What calibration forwards left behind, kept between passes."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ..layers import QuantLayer
from ..observers import BaseObserver
from ..quantizers import BaseQuantizer, Granularity
from ..registry import OBSERVERS, build_from
from ..structures import Port
from .moments import ChannelMeans


class Statistics:
    """Observers of activations, and means of the layers' inputs.

    ``Observe`` fills them; passes that choose ranges or correct biases read
    them, however often.

    Attributes:
        groups (list[list[Port]]): Ports that an observer stands for.
        observers (list[BaseObserver]): One for each group.
        means (ChannelMeans, optional): Of float inputs; None if no pass
            wanted them.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._cfgs: list[dict] = []
        self.groups: list[list[Port]] = []
        self.observers: list[BaseObserver] = []
        self.means: ChannelMeans | None = None

    def start(
        self,
        layers: dict[str, QuantLayer],
        groups: list[list[Port]],
        cfg_of: Callable[[BaseQuantizer], dict],
        means: bool,
        device: torch.device,
    ) -> None:
        """Makes empty statistics, and forgets those there were.

        Args:
            layers (dict[str, QuantLayer]): The twins by name.
            groups (list[list[Port]]): Ports that share an observer, as
                they share a quantizer.
            cfg_of (Callable): Gives the observer of a quantizer.
            means (bool): Whether means of the inputs are wanted.
            device (torch.device): Where the model is.
        """
        self.clear()
        for group in groups:
            name, port = group[0]
            quantizer = layers[name].act_quantizers[port]
            levels = layers[name].levels if quantizer.per_level else 1
            cfg = cfg_of(quantizer)
            self._add(group, cfg, quantizer.granularity, levels, device)
        self.means = ChannelMeans(layers) if means else None

    def _add(
        self,
        group: list[Port],
        cfg: dict,
        granularity: Granularity,
        levels: int,
        device: torch.device,
    ) -> None:
        observer = build_from(OBSERVERS, cfg)
        observer.bind(granularity, levels, device)
        self._cfgs.append(cfg)
        self.groups.append(list(group))
        self.observers.append(observer)

    def of(self, port: Port) -> BaseObserver | None:
        """The observer of what arrives at a port, None if there is none."""
        for group, observer in zip(self.groups, self.observers, strict=True):
            if port in group:
                return observer
        return None

    def of_rows(
        self, port: Port, quantizer: BaseQuantizer
    ) -> BaseObserver | None:
        """The observer of a port, if its rows are those of a quantizer."""
        observer = self.of(port)
        if observer is None or observer.granularity != quantizer.granularity:
            return None
        if observer.levels > 1 and not quantizer.per_level:
            return None
        return observer

    def drop(self, group: list[Port]) -> None:
        """Forgets one group."""
        at = self.groups.index(group)
        del self.groups[at], self.observers[at], self._cfgs[at]

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain types and tensors, to resume."""
        return dict(
            cfgs=list(self._cfgs),
            groups=[list(map(list, group)) for group in self.groups],
            grains=[(asdict(o.granularity), o.levels) for o in self.observers],
            observers=[o.state_dict() for o in self.observers],
            means=self.means.state_dict() if self.means else None,
        )

    def load_state_dict(
        self,
        state: dict[str, Any],
        layers: dict[str, QuantLayer],
        device: torch.device,
    ) -> None:
        """Replaces everything by what a state holds.

        Args:
            state (dict): From :meth:`state_dict`.
            layers (dict[str, QuantLayer]): The twins by name.
            device (torch.device): Where the model is.
        """
        self.clear()
        for group, cfg, (granularity, levels), found in zip(
            state['groups'],
            state['cfgs'],
            state['grains'],
            state['observers'],
            strict=True,
        ):
            ports = [(name, port) for name, port in group]
            self._add(ports, cfg, Granularity(**granularity), levels, device)
            self.observers[-1].load_state_dict(found)
        if state['means'] is not None:
            self.means = ChannelMeans(layers)
            self.means.add(state['means'])
