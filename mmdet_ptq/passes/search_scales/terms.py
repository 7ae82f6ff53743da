# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the grid of one tensor does to the output of a layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...calibration import weight_matrix
from ...layers import QuantLayer
from .objectives import Objective
from .operands import Sampled, as_input, as_rows, blocks_of, row_ids


@dataclass
class Term:
    """An output whose error depends on the grid of a tensor X alone.

    ::

        off(Q) = (Q(X) - X) F + P

    Rows and columns of the outputs are those that serve the grid: outputs of
    a weight are transposed. Blocks b of X have matrices F in common where
    there are more blocks than matrices.

    Attributes:
        x (Tensor): X, ``[B, U, N]``.
        factor (Tensor, optional): F, ``[G, N, M]``, B a multiple of G; None
            is the identity.
        offset (Tensor): P, ``[B, U, M]``, what other quantizers have done.
        rows (Tensor): int64 ``[B, J]``, rows of the quantizer; see
            :func:`blocks_of`.
        now (Callable): Q(X) as it is just now.
        rest (Tensor): ``[B]``, a part of the squared error that no Q(X) can
            change and that F and P were rid of.
        weight (Tensor, optional): ``[B, U, M]``, by which errors are
            multiplied before anything else.
        exact (Tensor, optional): ``[B, U, M]``, the float output.
        image (Tensor, optional): int64 ``[U]`` or ``[M]``: of each output
            position its image, counted from 0.
        across (bool): Whether positions are the columns of the output.
        ranked (bool): Whether the order of the outputs of a position
            matters.
    """

    x: Tensor
    factor: Tensor | None
    offset: Tensor
    rows: Tensor
    now: Callable[[], Tensor]
    rest: Tensor
    weight: Tensor | None = None
    exact: Tensor | None = None
    image: Tensor | None = None
    across: bool = False
    ranked: bool = False

    def times_factor(self, error: Tensor, columns: slice) -> Tensor:
        """``error F`` for some columns of X.

        Args:
            error (Tensor): ``[B, ..., n]``.
            columns (slice): Which n columns.

        Returns:
            Tensor: ``[B, ..., M]``.
        """
        if self.factor is None:
            return functional.pad(
                error, (columns.start, self.x.shape[2] - columns.stop)
            )
        factor = self.factor[:, columns]
        flat = error.reshape(len(factor), -1, error.shape[-1])
        return (flat @ factor).view(*error.shape[:-1], -1)


def reduced(
    factor: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same squared errors from no more outputs than columns.

    With the factorization ``Fᵀ = Q R``, ``|e F + p|² = |e Rᵀ + p Q|² + |p|² -
    |p Q|²``. It is the second moment ``F Fᵀ`` without its squared condition.

    Args:
        factor (Tensor): ``[G, N, M]``.
        offset (Tensor): ``[B, U, M]``.

    Returns:
        tuple[Tensor, Tensor, Tensor | None]: F and P with N columns where
        they had more, and the rest ``[B]``; None if nothing was done.
    """
    groups, columns, outputs = factor.shape
    if outputs <= columns:
        return factor, offset, None
    q, r = torch.linalg.qr(factor.mT)
    flat = offset.reshape(groups, -1, outputs)
    shorter = (flat @ q).view(*offset.shape[:2], columns)
    rest = offset.double().square().sum((1, 2))
    rest -= shorter.double().square().sum((1, 2))
    return r.mT, shorter, rest.clamp(min=0)


class Terms:
    """Makes terms for the quantizers of one layer.

    Args:
        layer (QuantLayer): The layer.
        data (list[Sampled]): Of each pyramid level.
        objective (Objective): What it is for.
        ranked (bool): Whether it gives what a softmax reads.
    """

    def __init__(
        self,
        layer: QuantLayer,
        data: list[Sampled],
        objective: Objective,
        ranked: bool = False,
    ) -> None:
        self.layer = layer
        self.data = data
        self.objective = objective
        self.ranked = ranked

    def of(self, tensor: str) -> list[Term] | None:
        """Terms of a weight or of a port.

        Args:
            tensor (str): ``'weight'`` or the port.

        Returns:
            list[Term] | None: None if rows of the quantizer lie in a way
            that cannot be searched.
        """
        if tensor == 'weight':
            found = [self._weight()]
        elif tensor == 'input':
            found = [self._input(one) for one in self.data]
        else:
            found = [self._operand(one, tensor) for one in self.data]
        return None if None in found else found

    def samples(self, tensor: str) -> dict[int, Tensor]:
        """Values ``[K, S]`` of each row of the quantizer, by level."""
        if tensor == 'weight':
            weight = self.layer.weight.detach().float()
            return {0: self.layer.weight_quantizer.granularity.rows(weight)}
        grain = self.layer.act_quantizers[tensor].granularity
        found: dict[int, list[Tensor]] = {}
        for one in self.data:
            rows = grain.rows(self._shown(one, tensor))
            found.setdefault(one.level, []).append(rows)
        return {level: torch.cat(parts, 1) for level, parts in found.items()}

    def _shown(self, one: Sampled, port: str) -> Tensor:
        if port == 'input':
            return as_input(self.layer, one.inputs[0])
        return one.inputs[self.layer.ports.index(port)]

    def _quantized(self, one: Sampled, port: str) -> Tensor:
        x = self._shown(one, port)
        if port not in self.layer.act_quantizers:
            return x
        return self.layer.act_quantizers[port](x, one.level)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Float and quantized, ``[G, R, N]``."""
        layer = self.layer
        weight = layer.weight.detach().float()
        rounded = weight
        if layer.weight_quantizer is not None:
            rounded = layer.weight_quantizer(weight)
        return weight_matrix(layer, weight), weight_matrix(layer, rounded)

    def _level_rows(self, ids: Tensor, tensor: str, level: int) -> Tensor:
        """Rows of the quantizer, those of other levels before them."""
        quantizer = self.layer.act_quantizers[tensor]
        if quantizer.num_levels() == 1:
            return ids
        return ids + level * (quantizer.num_rows() // quantizer.num_levels())

    def _input(self, one: Sampled) -> Term | None:
        layer = self.layer
        shown = self._shown(one, 'input')
        grain = layer.act_quantizers['input'].granularity
        rows = blocks_of(as_rows(layer, row_ids(grain, shown.shape, shown)))
        if rows is None:
            return None
        x = one.inputs[0]
        weight, rounded = self._weights()
        return self._term(
            x,
            rounded.mT,
            x @ (rounded - weight).mT,
            self._level_rows(rows, 'input', one.level),
            lambda: as_rows(layer, self._quantized(one, 'input')),
            x @ weight.mT,
            one.slopes,
            one.image,
            False,
        )

    def _weight(self) -> Term | None:
        layer = self.layer
        grain = layer.weight_quantizer.granularity
        ids = row_ids(grain, layer.weight.shape, layer.weight)
        rows = blocks_of(weight_matrix(layer, ids).flatten(0, 1)[:, None])
        if rows is None:
            return None
        x = torch.cat([one.inputs[0] for one in self.data], 1)
        ours = [as_rows(layer, self._quantized(o, 'input')) for o in self.data]
        taken = torch.cat(ours, 1)
        weight, _ = self._weights()
        slopes = [o.slopes for o in self.data if o.slopes is not None]

        def split(outputs: Tensor) -> Tensor:
            return outputs.mT.flatten(0, 1)[:, None]

        return self._term(
            weight.flatten(0, 1)[:, None],
            taken.mT,
            split((taken - x) @ weight.mT),
            rows,
            lambda: self._weights()[1].flatten(0, 1)[:, None],
            split(x @ weight.mT),
            split(torch.cat(slopes, 1)) if slopes else None,
            torch.cat([one.image for one in self.data]),
            True,
        )

    def _operand(self, one: Sampled, port: str) -> Term | None:
        """Of a product; that of the second is of the transposed product."""
        first = port == self.layer.ports[0]
        grain = self.layer.act_quantizers[port].granularity

        def turned(t: Tensor) -> Tensor:
            return (t if first else t.mT).flatten(0, -3)

        x = self._shown(one, port)
        rows = blocks_of(turned(row_ids(grain, x.shape, x)))
        if rows is None:
            return None
        a, b = one.inputs
        other = self.layer.ports[1] if first else self.layer.ports[0]
        theirs = self._quantized(one, other)
        off = a @ (theirs - b) if first else (theirs - a) @ b
        return self._term(
            turned(x),
            turned(theirs) if first else theirs.mT.flatten(0, -3),
            turned(off),
            self._level_rows(rows, port, one.level),
            lambda: turned(self._quantized(one, port)),
            turned(a @ b),
            None if one.slopes is None else turned(one.slopes),
            None,
            not first,
        )

    def _term(
        self,
        x: Tensor,
        factor: Tensor | None,
        offset: Tensor,
        rows: Tensor,
        now: Callable[[], Tensor],
        exact: Tensor,
        weight: Tensor | None,
        image: Tensor | None,
        across: bool,
    ) -> Term:
        rest = x.new_zeros(len(x), dtype=torch.float64)
        if not self.objective.of_outputs:
            factor, offset, exact = None, torch.zeros_like(x), x
            weight = image = None
        elif self.objective.squares and weight is None:
            factor, offset, more = reduced(factor, offset)
            rest = rest if more is None else more
        return Term(
            x,
            factor,
            offset,
            rows,
            now,
            rest,
            weight,
            exact,
            image,
            across,
            self.ranked,
        )
