# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The learnable logarithmic-affine quantizer of Reg-PTQ, for weights."""

import math

import torch
from torch import Tensor, nn

from ...registry import QUANTIZERS
from ..capabilities import FitsTensor, LearnsTable, Searchable
from ..export_ops import exporting, sizes
from ..kernels import to_dtype
from ..table import TableQuantizer
from .codebook import K_MAX, K_MIN, Grid, half, power
from .fit import centre, fit_rows
from .gradient import through

FORMS = ('invertible', 'paper_literal')


@QUANTIZERS.register_module()
class LLAQuantizer(TableQuantizer, LearnsTable, FitsTensor, Searchable):
    """Values in geometric progression on both sides of a centre.

    Reg-PTQ (CVPR 2024) Eq. 9: ``psi(u) = k log2(u) + a`` with ``u =
    |w - mu|``, its own k and a on each side of mu, codes ``round(psi)``
    from 0 to N - 1, N = 2^(bits - 1). Dequantized by the inverse of psi,
    ``w_hat = mu +- 2^((q - a) / k)``. The codes of the quantizer count the
    values of both sides in ascending order: ``N - 1 - q`` below mu and
    ``N + q`` above (one less where both zero codes are one).

    ``form='paper_literal'``, for ablations: dequantized as printed,
    ``mu +- s 2^q`` with ``s = mean(u / (u^k 2^a))`` over the channel. That
    inverts psi only if k = 1 and both sides have the same a, as they are
    after :meth:`fit` and :meth:`set_range`. Once they were learned it is not
    idempotent, and the value need not be the nearest: the form breaks these
    two promises. Its codebook gradient to k is zero, as k moves thresholds
    only; the mean of ``u^(1 - k)`` in s stays that of the fit.

    Gradients: to x ``|w_hat - mu| / u`` (times k if literal) where psi is
    not clipped and 0 elsewhere, so also at the zero code; with r = 2^(1/k)
    it is within ``[2 / (1 + r), 2 r / (1 + r)]``, for ``rounding='log'``
    within ``[r^-1/2, r^1/2]``. To k and a that of the value, its code held.

    k and a are kept as float16 can hold them, a in multiples of 2^-10,
    after a fit and after learning. Magnitudes are within 2^-60 and 2^60.

    Args:
        bits (int): Bit-width, 2 to 8.
        granularity (str): ``'tensor'`` or ``'channel'``.
        axis (int, optional): Channel axis. Defaults to 0.
        role (str): ``'weight'``.
        form (str): ``'invertible'`` or ``'paper_literal'``.
        rounding (str): ``'linear'``, to the nearest value, or ``'log'``, to
            the nearest psi, as printed.
        mu (str): ``'zero'``, or ``'median'`` of the channel where it is off
            zero by a tenth of the mean deviation.
        zero (str | bool): Whether q = 0 stands for mu itself; ``'auto'``:
            from 4 bits, where that lowers the error of a Laplace density.
        k_granularity (str): ``'side'``, a k for each channel and side, or
            ``'layer'``, one for all, so that one table serves the layer.

    Attributes:
        log_k (Tensor): float32 log2(k), ``[K, 2]`` (below mu, above) or
            ``[1, 1]``; empty before :meth:`fit`. A parameter if learned.
        a (Tensor): float32 ``[K, 2]``, in codes. A parameter if learned.
        mu (Tensor): float32 ``[K]``, in units of x.
        moment (Tensor): float32 ``[K, 2]``, the sum of ``u^(1 - k)`` over a
            side per element of the channel; only if literal.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    log_k: Tensor
    a: Tensor
    mu: Tensor
    moment: Tensor

    def __init__(
        self,
        bits: int = 4,
        granularity: str = 'channel',
        axis: int | None = None,
        role: str = 'weight',
        form: str = 'invertible',
        rounding: str = 'linear',
        mu: str = 'zero',
        zero: str | bool = 'auto',
        k_granularity: str = 'side',
    ) -> None:
        _check(
            'role', role, 'weight', hint='; UniformQuantizer takes activations'
        )
        _check('granularity', granularity, 'tensor', 'channel')
        _check('form', form, *FORMS)
        _check('rounding', rounding, 'linear', 'log')
        _check('mu', mu, 'zero', 'median')
        _check('zero', zero, 'auto', True, False)
        _check('k_granularity', k_granularity, 'side', 'layer')
        super().__init__(bits, granularity, axis, role=role)
        self.centred = mu == 'median'
        self.shared = k_granularity == 'layer'
        self.grid = Grid(
            bits,
            bits >= 4 if zero == 'auto' else bool(zero),
            rounding == 'log',
            form == 'paper_literal',
        )
        self.register_buffer('log_k', torch.empty(0))
        self.register_buffer('a', torch.empty(0))
        self.register_buffer('mu', torch.empty(0))
        if self.grid.literal:
            self.register_buffer('moment', torch.empty(0))

    @torch.no_grad()
    def fit(self, x: Tensor) -> bool:
        """Starts from the Laplace scale, then a grid search by MSE.

        Args:
            x (Tensor): A float weight.

        Returns:
            bool: True.

        Raises:
            ValueError: If the weight holds NaN or Inf.
        """
        rows = self.finite_rows(x)
        mu = centre(rows) if self.centred else rows.new_zeros(rows.shape[0])
        rows = rows - mu[:, None]
        k, a = fit_rows(self.grid, rows, self.shared)
        # u^(1 - k) is 1, as k is
        above = (rows >= 0).sum(-1) / max(1, rows.shape[1])
        self._set(k, a, mu, torch.stack([1 - above, above], -1))
        return True

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Puts the top values at the ends of a range, mu at 0.

        The end of an empty side counts as 1e-8 of the other; if literal,
        both top values are at the farther end. See
        :meth:`BaseQuantizer.set_range`.
        """
        self.check_range(low, high)
        k, a = self.grid.cover(low.reshape(-1), high.reshape(-1))
        k = k.reshape(1, 1) if self.shared else k.expand(a.shape)
        self._set(k, a, a.new_zeros(len(a)), torch.full_like(a, 0.5))

    def _set(self, k: Tensor, a: Tensor, mu: Tensor, moment: Tensor) -> None:
        device = self.mu.device
        self.log_k.data = half(k.log2()).to(device)
        self.a.data = a.to(device)
        self.mu = mu.to(device)
        if self.grid.literal:
            self.moment = moment.to(device)
        self.initialized.fill_(True)

    def parameters_of(self) -> tuple[Tensor, Tensor]:
        """The parameters k and a, differentiable if learned.

        Returns:
            tuple[Tensor, Tensor]: float32 k, ``[K, 2]`` or ``[1, 1]``, in
            [0.2, 16], and a ``[K, 2]``.

        Raises:
            CalibrationError: Before :meth:`fit` or :meth:`set_range`.
        """
        if 0 in sizes(self.a):
            raise self.no_range()
        if isinstance(self.log_k, nn.Parameter) and not exporting():
            # an optimizer step may have left the range
            self.log_k.data.clamp_(math.log2(K_MIN), math.log2(K_MAX))
        return power(self.log_k), self.a

    def num_rows(self) -> int:
        """See :meth:`BaseQuantizer.num_rows`."""
        return len(self.a)

    def codebook(self) -> Tensor:
        """The value of every code, ascending.

        Returns:
            Tensor: float32 ``[K, 2^bits]``, or ``[K, 2^bits - 1]`` with a
            zero code; differentiable in k and a if they are learned.
        """
        k, a = self.parameters_of()
        moment = self.moment if self.grid.literal else None
        return self.grid.values(k, a, self.mu, moment)

    def bounds(self, table: Tensor) -> Tensor:
        """See :meth:`TableQuantizer.bounds`."""
        return self.grid.bounds(*self.parameters_of(), self.mu, table)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Quantizes and dequantizes.

        Args:
            x (Tensor): Any shape, strides and float type.
            level (int): Ignored.

        Returns:
            Tensor: Like ``x``, NaN where x is. Differentiable, see above.

        Raises:
            CalibrationError: Before :meth:`fit` or :meth:`set_range`.
            ValueError: If the parameters do not fit the shape of ``x``.
        """
        if exporting():
            return self.exported(x)
        y = self.values(self.encode(x))
        if torch.is_grad_enabled() and x.requires_grad:
            k, a = (p.detach() for p in self.parameters_of())
            mu = self.granularity.expand(self.mu, x.shape)
            y = through(self.grid, self.granularity, k, a, mu, x, y)
        y = torch.where(x.isnan(), x.to(torch.float32), y)
        return to_dtype(y, x.dtype)

    @torch.no_grad()
    def learn_table(self, enabled: bool = True) -> dict[str, Tensor]:
        """Makes ``log_k`` and ``a`` parameters, or rounded buffers."""
        for name, step in (('log_k', 0.0), ('a', 2.0**-10)):
            given = getattr(self, name)
            if enabled == isinstance(given, nn.Parameter):
                continue
            delattr(self, name)
            if enabled:
                setattr(self, name, nn.Parameter(given))
            else:
                if name == 'log_k':
                    given = given.clamp(math.log2(K_MIN), math.log2(K_MAX))
                self.register_buffer(name, half(given.detach(), step))
        return dict(k=self.log_k, a=self.a) if enabled else {}

    def parameter_bits(self, rows: int) -> int:
        """16 bits for each k and a, 32 for s if literal, 16 for a median."""
        bits = (48 if self.centred else 32) * rows
        if not self.grid.literal:
            bits += 16 if self.shared else 32 * rows
        return bits

    def trial(self, x: Tensor, candidates: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`Searchable.trial`."""
        low, high = candidates
        k, a = self.grid.cover(low, high)
        mu = torch.zeros_like(a[..., 0])
        moment = torch.full_like(a, 0.5) if self.grid.literal else None
        values = self.grid.values(k, a, mu, moment)
        bounds = self.grid.bounds(k, a, mu, values)
        x = x[:, None].expand(*low.shape, -1).contiguous()
        codes = torch.searchsorted(bounds, x, right=True)
        return values.gather(2, codes)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        form = FORMS[self.grid.literal]
        return f'{super().extra_repr()}, form={form!r}, zero={self.grid.zero}'


def _check(name: str, given: object, *allowed: object, hint: str = '') -> None:
    """Raises ValueError unless ``given`` is among ``allowed``."""
    # by type too: 1 == True
    if not any(type(given) is type(a) and given == a for a in allowed):
        choices = ', '.join(repr(a) for a in allowed)
        raise ValueError(
            f'{name} must be one of {choices}, got {given!r}{hint}'
        )
