# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a pass may read and write, and nothing else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..layers import QuantLayer, quant_layers
from ..quant_cfg import QuantConfig
from ..structures import LayerGraph, QuantPlan

Progress = Callable[[str, str, int, int], None]
"""``progress(stage, item, done, total)``"""


@dataclass
class Session:
    """The state of one quantization.

    Attributes:
        model (nn.Module): The detector, its layers already twins.
        graph (LayerGraph): The surveyed forward.
        plan (QuantPlan): The quantizer of every tensor.
        config (QuantConfig): The checked configuration.
        feed (Callable): ``feed(start, after)`` runs this rank's
            calibration images from index ``start`` through the model and
            calls ``after(i)`` after each; ``feed.total`` is how many, and
            ``feed.batch(i)`` gives one, None if it cannot be read.
        extra_feed (Callable): ``extra_feed(n)`` runs the first ``n``
            images in raw ``'tensor'`` mode, which also reaches layers that
            a prediction skips when nothing is detected.
        progress (Progress): Told what is being done.
        state (dict): Progress inside the running pass, for resuming; the
            pass owns its content.
        save (Callable): Writes the resume file; slow, call it seldom.
        seconds (dict[str, float]): Time spent in each stage.
        notes (list[str]): Sentences for the report.
        folds (dict[str, str]): Batch norms folded so far.
        norms (dict[str, nn.Module]): These batch norms as they were.
        records (list[dict]): What was done to each unit, plain JSON types.
        work_dir (Path): Where passes may put files for a while.
    """

    model: nn.Module
    graph: LayerGraph
    plan: QuantPlan
    config: QuantConfig
    feed: Any
    extra_feed: Callable[[int], None]
    progress: Progress = lambda *_: None
    state: dict = field(default_factory=dict)
    save: Callable[[], None] = lambda: None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    folds: dict[str, str] = field(default_factory=dict)
    norms: dict[str, nn.Module] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)
    work_dir: Path = Path('.')

    @property
    def layers(self) -> dict[str, QuantLayer]:
        """The twins by name."""
        return quant_layers(self.model)

    @property
    def levels(self) -> dict[str, int]:
        """Calls of each layer in one forward."""
        return {n: len(g.calls) for n, g in self.graph.layers.items()}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``seconds[name]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
