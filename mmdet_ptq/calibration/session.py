# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a pass may read and write, and nothing else."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..layers import QuantLayer, quant_layers
from ..plan import regroup, replace, replace_group
from ..quant_cfg import QuantConfig
from ..quantizers import BaseQuantizer, InstanceGroupQuantizer
from ..records import Record
from ..structures import LayerGraph, Port, QuantPlan, QuantSpec
from ..surgery import Edit
from .cache import ActivationCache
from .feed import Feed
from .statistics import Statistics

Progress = Callable[[str, str, float, int], None]
"""``progress(stage, item, done, total)``; the item has begun by a share"""


@dataclass
class Session:
    """The state of one quantization.

    Attributes:
        model (nn.Module): The detector, its layers already twins.
        graph (LayerGraph): The surveyed forward.
        plan (QuantPlan): The quantizer of every tensor.
        config (QuantConfig): The checked configuration.
        feed (Feed): This rank's calibration images.
        progress (Progress): Told what is being done.
        work_dir (Path): Where passes may put files for a while.
        edits (list[Edit]): Changes of the float model so far, in order;
            made by :meth:`edit`.
        stats (Statistics): What ``Observe`` gathered.
        wanted (frozenset[str]): Statistics that passes to come need.
        records (list[Record]): What was done to units.
        notes (list[str]): Sentences for the report.
        seconds (dict[str, float]): Time spent in each stage.
        state (dict): Progress inside the running pass, from a resume file;
            the pass owns its content.
        caches (list[ActivationCache]): Those that are open; made by
            :meth:`cache`.
        save (Callable): Writes the resume file; slow, call it seldom.
        export (Callable): Gives ``state`` for the resume file.
    """

    model: nn.Module
    graph: LayerGraph
    plan: QuantPlan
    config: QuantConfig
    feed: Feed
    progress: Progress = lambda *_: None
    work_dir: Path = Path('.')
    edits: list[Edit] = field(default_factory=list)
    stats: Statistics = field(default_factory=Statistics)
    wanted: frozenset[str] = frozenset()
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    caches: list[ActivationCache] = field(default_factory=list)
    save: Callable[[], None] = lambda: None
    export: Callable[[], dict] = dict

    @property
    def layers(self) -> dict[str, QuantLayer]:
        """The twins by name."""
        return quant_layers(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def warn(self, line: str) -> None:
        """Says what a user should know of in the log and in the notes.

        Args:
            line (str): A sentence.
        """
        self.notes.append(line)
        print_log(line, 'current', logging.WARNING)

    def edit(self, edit: Edit) -> None:
        """Changes the float model in a way that the artefact can redo.

        Args:
            edit (Edit): The change.

        Raises:
            PTQError: If it does not fit the model.
        """
        edit.apply(self.model)
        self.edits.append(edit)

    def replace(
        self, layer: str, tensor: str, spec: QuantSpec | None
    ) -> BaseQuantizer | None:
        """Gives one tensor another quantizer; all others stay as they are.

        Args:
            layer (str): Name of the layer.
            tensor (str): ``'weight'`` or the name of a port. A port that
                shared its quantizer has one of its own afterwards.
            spec (QuantSpec, optional): What it becomes, None for float.

        Returns:
            BaseQuantizer | None: The new quantizer, still without a range.

        Raises:
            QuantConfigError: If there is no such tensor, or no such
                quantizer.
        """
        return replace(self.model, self.plan, layer, tensor, spec)

    def replace_group(
        self, group: Sequence[Port], spec: QuantSpec
    ) -> BaseQuantizer:
        """Gives an input that several layers read another quantizer.

        Args:
            group (Sequence[Port]): All ports of one of the plan's groups.
            spec (QuantSpec): What it becomes; they go on sharing it.

        Returns:
            BaseQuantizer: The new quantizer, still without a range.

        Raises:
            QuantConfigError: If these ports are no group, or there is no
                such quantizer.
        """
        return replace_group(self.model, self.plan, group, spec)

    def regroup(
        self, group: list[Port], num_groups: int
    ) -> InstanceGroupQuantizer:
        """Gives ports that share grids of each image another number of them.

        Args:
            group (list[Port]): One of the plan's groups.
            num_groups (int): How many grids.

        Returns:
            InstanceGroupQuantizer: Theirs, without a range.

        Raises:
            QuantConfigError: If the ports have another quantizer.
        """
        return regroup(self.model, self.plan, group, num_groups)

    def rng(self, *key: int) -> torch.Generator:
        """A generator that depends on the seed and a key alone.

        It is on the device of the model: numbers drawn on the CPU would
        have to be copied. Another kind of device draws other numbers.

        Args:
            *key (int): What the numbers are for, e.g. unit, step, image.
        """
        seed = (self.config.calibration.seed, *key)
        generator = torch.Generator(self.device)
        return generator.manual_seed(hash(seed) & 0x7FFFFFFF)

    @contextmanager
    def cache(self) -> Iterator[ActivationCache]:
        """Room for activations, as ``calibration.cache`` bounds it."""
        config = self.config.calibration
        cache = ActivationCache(
            config.cache_bytes, self.work_dir, config.cache_dtype
        )
        self.caches.append(cache)
        try:
            yield cache
        finally:
            self.caches.remove(cache)
            cache.close()

    @contextmanager
    def resumable(self, export: Callable[[], dict]) -> Iterator[None]:
        """Says what the resume file holds of the running pass.

        Args:
            export (Callable): Gives what will be ``state`` on a resume:
                tensors and plain types.
        """
        self.export = export
        try:
            yield
        finally:
            self.export = dict

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``seconds[name]``."""
        with timed(self.seconds, name):
            yield


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the time spent inside to ``seconds[name]``."""
    start = time.perf_counter()
    try:
        yield
    finally:
        spent = time.perf_counter() - start
        seconds[name] = seconds.get(name, 0.0) + spent
