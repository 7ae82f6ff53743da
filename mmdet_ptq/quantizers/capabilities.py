# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a quantizer can do besides quantizing.

A quantizer inherits each class of this module whose promise it keeps, and
whoever needs one asks ``isinstance``.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class LearnsStep(nn.Module, ABC):
    """Its step can be learned.

    Attributes:
        scale (Tensor): float32, a parameter while it is learned and a
            buffer otherwise.
        scale_limits (tuple[float, float]): Least and greatest scale.
    """

    scale: Tensor
    scale_limits: ClassVar[tuple[float, float]]

    def learn_step(self, enabled: bool = True) -> None:
        """Makes ``scale`` a parameter, or a buffer again."""
        scale = self.scale.detach().abs().clamp_(*self.scale_limits)
        if enabled == isinstance(self.scale, nn.Parameter):
            return
        del self.scale
        if enabled:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer('scale', scale)

    def keep_scale(self) -> None:
        """Brings a learned scale back that a step moved over its limits."""
        if isinstance(self.scale, nn.Parameter):
            # through .data: another call may already have saved the scale
            self.scale.data.abs_().clamp_(*self.scale_limits)


class LearnsEnds(ABC):
    """Both ends of its range can be learned.

    Attributes:
        low (nn.Parameter): Exists only while it is learned, as does
            ``high``; float32, in units of x.
    """

    low: nn.Parameter
    high: nn.Parameter

    @abstractmethod
    def learn_ends(self, enabled: bool = True) -> None:
        """Makes both ends parameters, or takes the grid that they give."""


class LearnsTable(ABC):
    """The values of its codes can be learned."""

    @abstractmethod
    def learn_table(self, enabled: bool = True) -> dict[str, Tensor]:
        """Makes the parameters of the table learnable, or fixes them.

        Returns:
            dict[str, Tensor]: The parameters: ``'k'``, logarithms of
            slopes, and ``'a'``, offsets. Empty if not ``enabled``.
        """


class SoftRounding(ABC):
    """Its codes can be rounded softly, to the value below or above.

    Codes are numbered in the order of their values.
    """

    @abstractmethod
    def lower_codes(self, x: Tensor) -> Tensor:
        """Codes of the values next below ``x``.

        The next value above is that of the code plus one. Where ``x`` is
        clipped, the outermost two codes.

        Args:
            x (Tensor): Any shape and float type.

        Returns:
            Tensor: int32 of its shape; both the code and the code plus one
            are valid for :meth:`values`.
        """

    @abstractmethod
    def values(self, codes: Tensor) -> Tensor:
        """``decode``, differentiable in learned parameters.

        Args:
            codes (Tensor): int32.

        Returns:
            Tensor: float32 of its shape.
        """


class HasRange(ABC):
    """The range that it was set to can be read back."""

    @abstractmethod
    def range(self) -> tuple[Tensor, Tensor]:
        """Ends of the grid, in units of x.

        Returns:
            tuple[Tensor, Tensor]: Low and high, ``[K]`` or ``[L, K]``;
            ``set_range`` with them gives the same grid again.
        """


class Rescales(ABC):
    """All values of a row can be multiplied, the codes as they are."""

    @abstractmethod
    def rescale(self, factors: Tensor) -> None:
        """Multiplies the values of each row.

        Args:
            factors (Tensor): ``[K]``, above 0.
        """


class PlacesValues(ABC):
    """Each value of a row can be put anywhere, in place of its steps."""

    @abstractmethod
    def place(self, values: Tensor) -> None:
        """Sets the values of each row.

        Args:
            values (Tensor): ``[K, 2^bits]``, in any order.

        Raises:
            CalibrationError: If no range was set.
            ValueError: On another shape, or on NaN or Inf as a float32.
        """


class FitsTensor(ABC):
    """Its parameters come from the tensor itself rather than a range."""

    @abstractmethod
    def fit(self, x: Tensor) -> bool:
        """Finds the parameters.

        Args:
            x (Tensor): A float weight.

        Returns:
            bool: True.

        Raises:
            ValueError: If ``x`` holds NaN or Inf.
        """


class FitsPoints(ABC):
    """A range leaves some of its parameters open, and points say them.

    ``set_range`` gives those a sensible value. Where the tensor is known
    better than by its ends, :meth:`fit_points` then finds them.
    """

    @abstractmethod
    def fit_points(
        self, points: Tensor, shares: Tensor, p: float = 2.0, level: int = 0
    ) -> None:
        """Finds the parameters of least ``mean |x - q(x)|^p``.

        Args:
            points (Tensor): float32 ``[K, B]``, values of each row.
            shares (Tensor): float32 ``[K, B]``, how much of its row each of
                them stands for; may be 0.
            p (float): Exponent.
            level (int): Pyramid level; ignored where all share one range.

        Raises:
            CalibrationError: If no range was set.
        """


class PerInstance(ABC):
    """Its grid depends on the tensor, so that each image has its own.

    It has a few grids, and each row of a tensor takes the one that fits its
    own extremes best. ``set_range`` is given the ends of the grids, and
    ``encoding`` needs the tensor.

    Attributes:
        num_groups (int): How many grids there are.
        images_apart (bool): Whether what it is given has to be of one
            image, because a row is a channel of all that the image has.
    """

    num_groups: int
    images_apart: bool

    @property
    @abstractmethod
    def room(self) -> float | None:
        """What fits best, see :func:`grid_costs`."""


class Ranges(NamedTuple):
    """Candidate ranges, C for each of K rows.

    Attributes:
        low (Tensor): ``[K, C]``.
        high (Tensor): ``[K, C]``, nowhere below ``low``.
    """

    low: Tensor
    high: Tensor


class Searchable(ABC):
    """Its parameters can be searched for: many tried, the best adopted.

    Candidates are a named tuple of tensors ``[K, C]``: :class:`Ranges`
    here; a quantizer with other parameters overrides all but the names.
    """

    @abstractmethod
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Fixes the grid from the range it has to cover."""

    def candidates(
        self, low: Tensor, high: Tensor, fractions: Tensor
    ) -> tuple[Tensor, ...]:
        """Candidates for rows that were seen to span a range.

        Args:
            low (Tensor): ``[K]``.
            high (Tensor): ``[K]``.
            fractions (Tensor): ``[C]`` shares of the range to try.

        Returns:
            tuple[Tensor, ...]: A named tuple of tensors ``[K, C]``.
        """
        return Ranges(low[:, None] * fractions, high[:, None] * fractions)

    def of_rows(self, rows: slice | Tensor) -> 'Searchable':
        """What :meth:`trial` is to be asked of for some rows alone.

        Args:
            rows (slice | Tensor): Of the rows of a tensor, or their int64
                indices, which may repeat; those of all pyramid levels are
                counted one level after the other.

        Returns:
            Searchable: Itself, where all rows have grids of one kind.
        """
        return self

    @abstractmethod
    def trial(self, x: Tensor, candidates: tuple[Tensor, ...]) -> Tensor:
        """Quantizes rows with each candidate; neither reads nor sets state.

        Args:
            x (Tensor): float32 ``[K, B]``, or ``[1, B]`` for every row.
            candidates (tuple[Tensor, ...]): Tensors ``[K, C]``.

        Returns:
            Tensor: float32 ``[K, C, B]``, a new tensor.
        """

    @torch.no_grad()
    def adopt(self, candidates: tuple[Tensor, ...], index: Tensor) -> None:
        """Takes one candidate for each row.

        Args:
            candidates (tuple[Tensor, ...]): Tensors ``[K, C]``.
            index (Tensor): int64 ``[K]``, or ``[L, K / L]`` for rows of L
                pyramid levels.
        """
        flat = index.reshape(-1, 1)
        low, high = (c.gather(1, flat).view(index.shape) for c in candidates)
        self.set_range(low, high)


class Refines(Searchable):
    """Candidates can be made anew around the best ones.

    This is what fast progressive combining search needs (AdaLog, Wu et
    al., 2024, section 3.3): :meth:`coarse` gives combinations of all
    parameters, the best few of each row are kept, and :meth:`refined` looks
    between their neighbours, again and again. Candidates carry what their
    neighbours are, so that nothing is remembered between the calls.
    """

    @abstractmethod
    def coarse(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """Combinations to begin with.

        Args:
            x (Tensor): float32 ``[K, N]``, samples of each row.
            count (int): About how many, at least 16.

        Returns:
            tuple[Tensor, ...]: A named tuple of tensors ``[K, C]``, for
            :meth:`trial` and :meth:`adopt`.
        """

    @abstractmethod
    def refined(
        self, kept: tuple[Tensor, ...], each: int
    ) -> tuple[Tensor, ...]:
        """Candidates around others, which are among them.

        Args:
            kept (tuple[Tensor, ...]): Tensors ``[K, W]``.
            each (int): How many for each of those, at least 2.

        Returns:
            tuple[Tensor, ...]: Tensors ``[K, W * each]``, whose neighbours
            are nearer than those of ``kept``.
        """
