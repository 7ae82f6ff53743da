# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Extremes of the channels of each image, for grids that each image takes."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import whole
from ..context import images
from ..errors import CalibrationError
from ..quantizers import BaseQuantizer, Granularity, PerInstance
from ..registry import OBSERVERS
from .base import State, on_cpu
from .batch import fetch
from .fit_groups import fit_groups
from .minmax import PerImageObserver
from .sampling import row_extremes

#: most rows kept of a tensor, where rows are grouped
ROWS = 1 << 10


@OBSERVERS.register_module()
class InstanceObserver(PerImageObserver):
    """Keeps both extremes of each channel in each image (IGQ-ViT, 2024).

    8 bytes for each channel and image. Where rows are grouped, it keeps 1024
    of each tensor at most, at evenly spaced ranks of their widths.
    Neither the order of images nor how ranks share them changes a bit.

    Args:
        iterations (int): How often channels choose a grid and grids move to
            their channels (Algorithm 1).
        period (int): The paper's T: after how many of these steps grids that
            few channels need begin anew.

    Raises:
        ValueError: If an argument is out of range.
    """

    #: what extremes are of, where rows are no channels
    whole_tensor: ClassVar[Granularity] = Granularity()

    def __init__(self, iterations: int = 300, period: int = 75) -> None:
        self.iterations = whole('iterations', iterations, 1)
        self.period = whole('period', period, 1)
        super().__init__()

    @property
    def counted(self) -> Granularity:
        """See :attr:`BaseObserver.counted`; rows are never the same."""
        rows = self.granularity.kind == 'row'
        return self.whole_tensor if rows else self.granularity

    def why_not(self, quantizer: BaseQuantizer) -> str:
        """See :meth:`BaseObserver.why_not`."""
        if isinstance(quantizer, PerInstance):
            return ''
        return (
            'InstanceObserver gives ends of groups, which '
            f'{type(quantizer).__name__} has none of; give another observer'
        )

    def _allocate(self, rows: int) -> None:
        super()._allocate(rows)
        self.points: list[Tensor] = []

    def observe(self, x: Tensor, level: int = 0) -> None:
        """See :meth:`BaseObserver.observe`.

        Raises:
            CalibrationError: If channels are those of several images.
        """
        count = images()
        if self.granularity.kind != 'row' and count is not None and count > 1:
            raise CalibrationError(
                'grids that each image takes are calibrated image by image, '
                f'and a batch holds {count}: give batches of one image'
            )
        super().observe(x, level)

    def _keep(self, x: Tensor) -> Any:
        if self.granularity.kind != 'row':
            return None
        low, high = row_extremes(x, self.granularity)
        low = low.clamp(max=0)  # grids hold zero
        order = (high - low).argsort(stable=True)
        ends = torch.stack([low, high], 1)[order]
        count = len(ends)
        if count > ROWS:
            at = torch.arange(ROWS, device=x.device) * (count - 1)
            ends = ends[at // (ROWS - 1)]
        return ends

    @classmethod
    def add_kept(cls, kept: list[tuple[Any, int, Any]]) -> None:
        """See the base class."""
        some = [(one, ends) for one, _, ends in kept if ends is not None]
        found = fetch([ends for _, ends in some])
        for (one, _), ends in zip(some, found, strict=True):
            one.points.append(ends.to(torch.float32))

    def _fold(self, low: Tensor, high: Tensor) -> None:
        if self.granularity.kind != 'row':
            self.points.append(torch.stack([low[0], high[0]], 1))

    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        assert isinstance(quantizer, PerInstance)
        groups = quantizer.num_groups
        points = torch.cat(self.points)
        ends = fit_groups(
            points, groups, self.iterations, self.period, quantizer.room
        )
        low, high = ends.to(torch.float32).t().unsqueeze(1)
        return low, high

    def state_dict(self) -> State:
        """See the base class; ``points`` is ``[P, 2]``."""
        state = super().state_dict()
        empty = torch.empty(0, 2, device='cpu')
        points = torch.cat(self.points) if self.points else empty
        return dict(state, **on_cpu(points=points))

    def load_state_dict(self, state: State) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self.points = [state['points'].clone()]

    def _merged(self, states: list[State]) -> State:
        points = torch.cat([s['points'] for s in states])
        return dict(super()._merged(states), points=points)
