# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Candidates for a uniform grid: ranges, or scales with zero points."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .capabilities import Ranges, Refines

#: zero points tried at once, and least number of scales with each
ZEROS, SCALES = 16, 8
#: share of a row between whose quantiles the narrowest range lies
INNER = 0.9
#: elements of a row that its quantiles are taken of
SAMPLE = 1 << 16


class Steps(NamedTuple):
    """Candidate scales and zero points, C for each of K rows.

    Attributes:
        scale (Tensor): float32 ``[K, C]``, in units of x.
        zero_point (Tensor): int32 ``[K, C]``.
        pitch (Tensor): float32 ``[K, C]``, how far the next scale is that
            was tried with the same zero point.
    """

    scale: Tensor
    zero_point: Tensor
    pitch: Tensor


class SearchesSteps(Refines):
    """What a uniform quantizer tries: ranges, and progressive steps.

    The (s, z) search of AdaLog (Wu et al., 2024), but that zero points are
    tried around the one that a row asks for, and 0 always, where the public
    code tries those around the middle code; and that there are 8 scales or
    more at every width, where the code has one at 8 bits.
    """

    bits: int
    symmetric: bool
    qmin: int
    qmax: int
    scale: Tensor
    zero_point: Tensor
    initialized: Tensor
    scale_limits: ClassVar[tuple[float, float]]

    @abstractmethod
    def grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point that cover a range."""

    @torch.no_grad()
    def coarse(self, x: Tensor, count: int) -> Steps:
        """See :meth:`Refines.coarse`.

        Scales in equal steps from that of the range between the quantiles
        0.1 and 0.9 to that of a range one code wider than the whole; zero
        points next to that of the whole range, and 0. If there is a grid for
        each of these rows already, it is one more candidate.
        """
        low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
        widest, middle = self.grid(low, high)
        zeros = self._zeros(middle, count)
        most = max(SCALES, count // zeros.shape[1])
        few = x[:, :: -(-x.shape[1] // SAMPLE)]
        ends = few.new_tensor([1 - INNER, INNER])
        narrowest, _ = self.grid(*few.quantile(ends, 1))
        narrowest = torch.minimum(narrowest, widest)
        # a wider range can be best: it moves the zero point, and the largest
        # value of a symmetric grid is half a step below its range
        widest = widest * (1 + 1 / (self.qmax - self.qmin))
        at = torch.linspace(0, 1, most, device=x.device)
        pitch = (widest - narrowest) / (most - 1)
        scale = torch.lerp(narrowest[:, None], widest[:, None], at)
        # every scale with every zero point
        shape = len(x), zeros.shape[1], most
        found = Steps(
            scale[:, None].expand(shape).flatten(1),
            zeros[:, :, None].expand(shape).flatten(1),
            pitch[:, None, None].expand(shape).flatten(1),
        )
        if self.scale.numel() != len(x):
            return found
        now = Steps(self.scale.detach(), self.zero_point, pitch)
        return Steps(
            *(
                torch.cat([t, one.reshape(-1, 1).to(t)], 1)
                for t, one in zip(found, now, strict=True)
            )
        )

    def _zeros(self, middle: Tensor, count: int) -> Tensor:
        """Zero points ``[K, Z]`` around others ``[K]``."""
        if self.symmetric:
            return middle[:, None]
        codes = self.qmax - self.qmin + 1
        many = max(1, min(ZEROS, codes, count // SCALES))
        first = (middle - many // 2).clamp(self.qmin, self.qmax + 1 - many)
        steps = torch.arange(many, dtype=first.dtype, device=first.device)
        zeros = first[:, None] + steps
        # the range of a tensor without negative values begins at 0
        zeros[:, 0] = self.qmin
        return zeros

    @torch.no_grad()
    def refined(self, kept: tuple[Tensor, ...], each: int) -> Steps:
        """See :meth:`Refines.refined`: scales, the zero points stay."""
        scale, zero, pitch = (t[..., None] for t in kept)
        at = torch.arange(each, device=scale.device) - each // 2
        moved = scale + at * (pitch / each)
        # a scale within the limits is not touched
        moved = moved.clamp(*self.scale_limits)
        return Steps(
            moved.flatten(1),
            zero.expand_as(moved).flatten(1),
            (pitch / each).expand_as(moved).flatten(1),
        )

    def trial(self, x: Tensor, candidates: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`Searchable.trial`."""
        if isinstance(candidates, Ranges):
            steps = self.grid(*candidates)
        else:
            steps = candidates[0], candidates[1]
        scale, zero = (t.unsqueeze(-1) for t in steps)
        y = (x.unsqueeze(1) / scale).round_()
        # one step less than moving by z, and faster than clamp by tensors
        torch.maximum(y, (self.qmin - zero).to(torch.float32), out=y)
        torch.minimum(y, (self.qmax - zero).to(torch.float32), out=y)
        return y.mul_(scale)

    @torch.no_grad()
    def adopt(self, candidates: tuple[Tensor, ...], index: Tensor) -> None:
        """See :meth:`Searchable.adopt`."""
        if isinstance(candidates, Ranges):
            super().adopt(candidates, index)
            return
        flat = index.reshape(-1, 1)
        scale, zero = (
            c.gather(1, flat).view(index.shape) for c in candidates[:2]
        )
        self.scale.data = scale.to(self.scale)
        self.zero_point = zero.to(self.zero_point)
        self.initialized.fill_(True)
