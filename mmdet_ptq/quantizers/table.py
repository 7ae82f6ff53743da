# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What quantizers have in common whose values stand in a table."""

from abc import abstractmethod

import torch
from torch import Tensor

from .base import BaseQuantizer
from .capabilities import SoftRounding
from .export_ops import fields, table_lookup_op
from .table_encoding import TableEncoding, count, look_up


class TableQuantizer(BaseQuantizer, SoftRounding):
    """A table of values for each row, and bounds between their codes."""

    @abstractmethod
    def codebook(self) -> Tensor:
        """The value of every code.

        Returns:
            Tensor: float32 ``[K, V]``, ascending, differentiable in what is
            learned.

        Raises:
            CalibrationError: If there are no parameters yet.
        """

    @abstractmethod
    def bounds(self, table: Tensor) -> Tensor:
        """Where each code but the first begins, itself included.

        Args:
            table (Tensor): Of :meth:`codebook`.

        Returns:
            Tensor: float32 ``[K, N]``, ascending.
        """

    @torch.no_grad()
    def encoding(
        self, x: Tensor | None = None, level: int = 0
    ) -> TableEncoding:
        """See :meth:`BaseQuantizer.encoding`; ``x`` is not looked at."""
        table = self.codebook()
        return TableEncoding(
            self.bits, self.granularity, table, self.bounds(table)
        )

    def lower_codes(self, x: Tensor) -> Tensor:
        """See :meth:`SoftRounding.lower_codes`."""
        values = self.codebook().detach()
        codes = count(values, x, self.granularity) - 1
        return codes.clamp_(0, values.shape[1] - 2)

    def values(self, codes: Tensor) -> Tensor:
        """See :meth:`SoftRounding.values`."""
        return look_up(self.codebook(), codes, self.granularity)

    def finite_rows(self, x: Tensor) -> Tensor:
        """Rows of a tensor to fit, float32 ``[K, M]``.

        Raises:
            ValueError: If one is NaN or Inf, as a float32.
        """
        rows = self.granularity.rows(x.detach().to(torch.float32))
        if not bool(torch.isfinite(rows).all()):
            raise ValueError('a weight to fit holds NaN or Inf')
        return rows

    def exported(self, x: Tensor) -> Tensor:
        """The forward as a single operation, without a gradient."""
        table = self.codebook().detach()
        bounds = self.bounds(table).detach()
        y: Tensor = table_lookup_op(
            x, table, bounds, *fields(self.granularity)
        )
        return y
