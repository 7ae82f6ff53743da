# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The quantizer: ranges, promises, learning, storage."""

import math

import pytest
import torch
from llaq_kit import ALL_BITS, error, fitted, laplace, made
from promises import FACTORIES, check_codes, check_output, check_state
from seeded import seeded

from mmdet_ptq.quantizers import LLAQuantizer
from mmdet_ptq.registry import QUANTIZERS, build_from

LLAQ = {n: m for n, m in FACTORIES.items() if n.startswith('llaq')}


each = pytest.mark.parametrize('make', LLAQ.values(), ids=LLAQ)


@each
@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_promises_after_fit(make, bits):
    torch.manual_seed(0)
    base = torch.randn(2, 6, 3, 2)
    outlier, sided, dead = base.clone(), base.abs(), base.clone()
    outlier[0, 0, 0, 0] = 1e20
    dead[0] = 0
    dead[:, 2] = 0
    for x in (
        base,
        outlier,
        sided,
        -sided,
        dead,
        base * 1e-12,
        base.transpose(2, 3),
        base.contiguous(memory_format=torch.channels_last),
        base[..., ::2],
        base[:, :, :0],
        torch.full_like(base, 0.7),
        torch.zeros_like(base),
        3e38 * base.sign(),
    ):
        q = make(bits)
        assert q.fit(x)
        q.eval()
        with torch.no_grad():
            y = q(x)
            table = q.codebook()
            assert (table.diff(dim=1) >= 0).all()
            assert table.shape[1] <= 2**bits
        check_codes(q, x, y)
        check_output(q, x, y)
        check_state(q, make(bits), x, y)


def test_every_code_survives():
    for bits in ALL_BITS:
        for kwargs in ({}, dict(zero=False, rounding='log')):
            q = fitted(torch.randn(4, 600), bits, **kwargs)
            table = q.codebook()
            assert (table.diff(dim=1) > 0).all()
            codes = torch.arange(table.shape[1]).expand(4, -1)
            assert torch.equal(q.encode(table).long(), codes)


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_levels_next_to_a_large_centre(bits):
    """Closer than float32 resolves there, so that some coincide."""
    torch.manual_seed(0)
    for spread in (1e-5, 1e-4, 1e-3):
        w = 1000 + spread * torch.randn(3, 400)
        q = fitted(w, bits, mu='median')
        assert (q.mu == 1000).all()
        assert (q.codebook().diff(dim=1) >= 0).all()
        assert torch.equal(q(q(w)), q(w))


def test_axis():
    torch.manual_seed(0)
    w = torch.randn(5, 7, 3, 3)
    a, b = fitted(w, axis=1), fitted(w.transpose(0, 1))
    assert torch.equal(a(w), b(w.transpose(0, 1)).transpose(0, 1))
    assert fitted(w, axis=-3).a.shape == (7, 2)
    with pytest.raises(ValueError, match='7 rows do not fit'):
        a(w.transpose(0, 1))
    assert fitted(w, granularity='tensor').a.shape == (1, 2)


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('zero', [False, True])
def test_range(bits, zero):
    q = LLAQuantizer(bits, zero=zero)
    q.set_range(torch.tensor([-3.0, 0.0, 0.0]), torch.tensor([0.5, 2.0, 0.0]))
    table = q.codebook()
    # the exponent is kept to 11 bits of a
    close = pytest.approx
    assert table[0, 0].item() == close(-3, rel=0.02)
    assert table[0, -1].item() == close(0.5, rel=0.02)
    assert table[1, -1].item() == close(2, rel=0.02)
    assert table[1, 0].item() == close(-2e-8, rel=0.02)
    assert table[2, -1].item() == close(1e-8, rel=0.02)
    assert q.initialized and (table.diff(dim=1) > 0).all()
    q.set_range(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    assert q.codebook().shape[0] == 1
    one = LLAQuantizer(bits, k_granularity='layer')
    one.set_range(-torch.ones(3), torch.ones(3))
    assert one.log_k.shape == (1, 1) and one.a.shape == (3, 2)


def test_learning():
    torch.manual_seed(0)
    w = torch.randn(4, 100)
    q = fitted(w)
    q.learn_table()
    optimizer = torch.optim.Adam(q.parameters(), lr=0.01)
    first = error(q, w)
    for _ in range(60):
        optimizer.zero_grad()
        (q(w) - w).square().sum().backward()
        optimizer.step()
    assert error(q, w) < 0.97 * first
    learned = q.log_k.detach().clone()
    q.learn_table(True)  # again: no change
    assert torch.equal(q.log_k, learned)
    q.learn_table(False)
    q.learn_table(False)
    assert not list(q.parameters())
    assert error(q, w) < 0.97 * first
    for name in ('log_k', 'a'):
        value = getattr(q, name)
        assert torch.equal(value, value.half().float())
    assert torch.equal(q.a * 1024, (q.a * 1024).round())
    # wherever an optimizer steps
    q.learn_table()
    for k in (-50.0, 50.0):
        for a in (-1e4, 1e4):
            q.log_k.data.fill_(k)
            q.a.data.fill_(a)
            y = q(w)
            assert torch.isfinite(y).all() and torch.equal(q(y), y)
            assert 0.2 - 1e-6 < 2 ** q.log_k[0, 0].item() < 16 + 1e-4
            y.sum().backward()
    q.log_k.data.fill_(50.0)
    q.learn_table(False)
    assert q.log_k.unique().tolist() == [4.0]
    # a fit of a quantizer that learns keeps its parameters
    q.learn_table()
    q.fit(w)
    assert len(list(q.parameters())) == 2 and error(q, w) == first
    fresh = LLAQuantizer(4)
    fresh.load_state_dict(q.state_dict())
    assert torch.equal(fresh(w), q(w))


def test_literal_fits_and_learns():
    x = laplace(1 << 12)
    for bits, want in ((2, 0.541), (3, 0.132), (4, 0.0765), (8, 0.0762)):
        q = fitted(x, bits, form='paper_literal')
        assert q.log_k.eq(0).all() and error(q, x) == pytest.approx(
            want, rel=0.02
        )
        assert torch.equal(q.a[:, 0], q.a[:, 1])
    # s is common to both sides, however unlike they are
    w = torch.randn(40, 30, generator=seeded(0)) ** 3
    q = fitted(w, 4, form='paper_literal')
    assert torch.equal(q.a[:, 0], q.a[:, 1]) and torch.equal(q(q(w)), q(w))
    # k = 1 errs least, and inverts psi
    x = x[:, ::7]
    errors = []
    for k in (0.75, 1.0, 1.6):
        best = math.inf
        for a in torch.linspace(-4, 6, 60).tolist():
            s = (x.abs() ** (1 - k)).mean().item()
            q = made(
                k,
                [a, a],
                bits=4,
                moment=[s / 2, s / 2],
                form='paper_literal',
                zero=False,
            )
            best = min(best, error(q, x))
        errors.append(best)
    assert errors[1] < 0.7 * errors[0] and errors[1] < 0.5 * errors[2]
    q = fitted(x, 4, form='paper_literal')
    q.learn_table()
    q(x).square().sum().backward()
    assert (q.a.grad != 0).all() and (q.log_k.grad is None)
    z = x.clone().requires_grad_()
    q.log_k.data.fill_(0.5)
    y = q(z)
    y.sum().backward()
    inside = z.grad != 0
    want = 2**0.5 * (y / z)[inside]
    assert torch.allclose(z.grad[inside], want.detach(), rtol=1e-4)


def test_literal_range():
    q = LLAQuantizer(3, form='paper_literal')
    q.set_range(torch.tensor([-1.0, 0.0]), torch.tensor([4.0, 0.0]))
    assert q.codebook()[0].tolist() == [-4, -2, -1, -0.5, 0.5, 1, 2, 4]


def test_storage_bits():
    shape = (8, 4, 3, 3)
    weights = 288 * 4
    for kwargs, extra in (
        ({}, 8 * 64),  # 8 bytes a channel
        (dict(mu='median'), 8 * (64 + 16)),
        (dict(granularity='tensor'), 64),
        (dict(k_granularity='layer'), 8 * 32 + 16),
        (dict(axis=1), 4 * 64),
        (dict(form='paper_literal'), 8 * 32),
        (dict(form='paper_literal', mu='median'), 8 * (32 + 16)),
    ):
        q = LLAQuantizer(4, **kwargs)
        assert q.storage_bits(shape) == weights + extra
    q = fitted(torch.randn(shape), mu='median')
    for value in (q.log_k, q.a, q.mu):  # and no more is needed
        assert torch.equal(value, value.half().float())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(bits=1), '2 to 8'),
        (dict(bits=9), '2 to 8'),
        (dict(role='act'), "role .*'weight'.*UniformQuantizer"),
        (dict(granularity='group'), "'tensor', 'channel'"),
        (dict(form='literal'), "'invertible', 'paper_literal'"),
        (dict(rounding='psi'), "'linear', 'log'"),
        (dict(mu=0), "'zero', 'median'"),
        (dict(zero=1), "'auto', True, False"),
        (dict(k_granularity='channel'), "'side', 'layer'"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LLAQuantizer(**kwargs)


def test_wrong_values():
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match='NaN or Inf'):
            LLAQuantizer(4).fit(torch.tensor([[1.0, value]]))
    with pytest.raises(ValueError, match='above'):
        LLAQuantizer(4).set_range(torch.tensor([1.0]), torch.tensor([0.0]))
    q = fitted(torch.randn(1, 9))
    assert torch.isnan(q(torch.tensor([[math.nan]]))).all()
    x = torch.tensor([[math.inf, -math.inf]])
    assert q(x).tolist() == [q.codebook()[0, [-1, 0]].tolist()]


def test_from_a_config():
    q = build_from(
        QUANTIZERS,
        dict(
            type='LLAQuantizer',
            bits=3,
            granularity='channel',
            axis=0,
            role='weight',
        ),
    )
    assert isinstance(q, LLAQuantizer) and q.bits == 3
    assert "bits=3, granularity='channel', form='invertible'" in repr(q)
