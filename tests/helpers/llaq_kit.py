# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Logarithmic quantizers, fitted."""

import torch

from mmdet_ptq.quantizers import LLAQuantizer

ALL_BITS = range(2, 9)


def made(k, a, mu=None, bits=2, moment=None, **kwargs):
    """With these parameters for one row, or rows of them."""
    q = LLAQuantizer(bits, **kwargs)
    a = torch.as_tensor(a, dtype=torch.float32).reshape(-1, 2)
    k = torch.as_tensor(k, dtype=torch.float32).expand(a.shape)
    state = dict(
        log_k=k.log2()[:1, :1] if q.shared else k.log2(),
        a=a,
        mu=torch.zeros(len(a)) if mu is None else torch.tensor(mu),
        initialized=torch.tensor(True),
    )
    if moment is not None:
        state['moment'] = torch.tensor(moment).reshape(-1, 2)
    q.load_state_dict(state)
    return q.eval()


def laplace(n=1 << 16):
    """Both halves of a Laplace density of scale 1, by quantiles: [1, 2n]."""
    u = -torch.log1p(-(torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return torch.cat([-u, u]).to(torch.float32)[None]


def error(q, x):
    with torch.no_grad():
        return (q(x) - x).double().square().mean().item()


def laplace_error(q):
    """Squared error on a Laplace density of scale 1, by quadrature."""
    x = torch.linspace(-25, 25, (1 << 16) + 1, dtype=torch.float64)
    weight = (-x.abs()).exp() / 2 * (x[1] - x[0])
    with torch.no_grad():
        y = q(x[None].float())[0]
    return ((y - x).square() * weight).sum().item()


def fitted(x, bits=4, **kwargs):
    q = LLAQuantizer(bits, **kwargs)
    assert q.fit(x) is True
    return q.eval()
