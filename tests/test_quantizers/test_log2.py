# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Powers of two and of its root."""

import math

import pytest
import torch
from seeded import seeded

from mmdet_ptq.quantizers import LogQuantizer, TableEncoding

ONE, NOUGHT = torch.ones(1), torch.zeros(1)
ROOT = math.sqrt(2)


def ready(*args, high=1.0, **kwargs):
    q = LogQuantizer(*args, **kwargs)
    q.set_range(NOUGHT, ONE * high)
    return q


def softmax(seed=0):
    """Outputs of a softmax, and zeros among them."""
    x = torch.randn(200, 40, generator=seeded(seed)) * 3
    return x.softmax(-1) * (torch.rand(200, 40, generator=seeded(1)) > 0.1)


def test_two_bits_by_hand():
    q = ready(2, high=4.0)
    assert q.codebook().tolist() == [[0, 1, 2, 4]]
    # a power ends where its exponent is halfway to the next
    ends = torch.tensor([[ROOT / 2, ROOT, 2 * ROOT]])
    torch.testing.assert_close(q.encoding().bounds, ends)
    x = torch.tensor([-3.0, 0.0, 0.7, 0.72, 1.4, 1.42, 2.8, 2.9, 9.0])
    assert q.encode(x).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert q(x).tolist() == [0, 0, 0, 1, 1, 2, 2, 4, 4]


def test_rounding_by_hand():
    """Of 1 and 1/2: their geometric, arithmetic and harmonic means."""
    for rounding, end in dict(
        log=ROOT / 2, linear=0.75, inverse=2 / 3
    ).items():
        bounds = ready(2, rounding=rounding).encoding().bounds[0]
        assert bounds[-1].item() == pytest.approx(end, rel=1e-7)
    # below the last power lies zero itself
    assert ready(2, rounding='linear').encoding().bounds[0, 0] == 0.125


@pytest.mark.parametrize('bits', range(2, 8))
@pytest.mark.parametrize('base, root', [('log2', 1), ('sqrt2', 2)])
def test_authors_simulation_takes_a_bit_more(bits, base, root):
    """2^b powers and zero, as FQ-ViT and RepQ-ViT simulate them."""
    x, s = softmax(), 0.8
    k = torch.round(-root * (x.double() / s).log2()).clamp(min=0)
    want = torch.where(k >= 2**bits, 0.0, s * 2.0 ** (-k / root))
    q = ready(bits + 1, base, powers=2**bits, high=s)
    torch.testing.assert_close(q(x), want.float(), rtol=1e-6, atol=0)
    assert q.storage_bits(x.shape) == x.numel() * (bits + 1) + 32
    # with b bits the smallest power has to go
    one_less = torch.where(k >= 2**bits - 1, 0.0, want)
    got = ready(bits, base, high=s)(x)
    torch.testing.assert_close(got, one_less.float(), rtol=1e-6, atol=0)


def test_formula_of_the_papers_has_no_zero():
    x = torch.tensor([-1.0, 0.0, 0.05, 0.13, 0.9])
    assert ready(2, powers=4)(x).tolist() == [0.125, 0.125, 0.125, 0.125, 1]
    assert ready(2)(x).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize('bits', range(2, 9))
def test_root_of_two_is_shifts_and_one_factor(bits):
    """RepQ-ViT: 2^(-k/2) = 2^-ceil(k/2) ((k mod 2) (sqrt 2 - 1) + 1)."""
    found = ready(bits, 'sqrt2', powers=2**bits).codebook()[0].flip(0)
    for k, value in enumerate(found.tolist()):
        factor = (k % 2) * (ROOT - 1) + 1
        want = 2.0 ** -math.ceil(k / 2) * factor
        if want > 2.0**-126:  # below that is no normal float32
            assert value == pytest.approx(want, rel=1e-7)


def test_inverse_rounds_as_integer_softmax():
    """FQ-ViT: of the sum over one exponential, to a whole number."""
    ratio = torch.arange(1, 4000)
    floor = ratio.double().log2().floor()
    up = ratio - 2**floor >= 2 ** (floor - 1)
    k = torch.where(up & (ratio > 1), floor + 1, floor)
    got = ready(4, rounding='inverse')(1 / ratio.double())
    want = torch.where(k >= 15, 0.0, 2.0**-k)
    # 1.5 times a power of two is a tie, which a last bit decides
    tie = ratio == 1.5 * 2**floor
    assert torch.equal(got[~tie], want[~tie])
    assert ready(4)(1 / ratio.double()).ne(want)[~tie].any()


def test_whole_rounds_the_ratio_first():
    """FQ-ViT's softmax takes the sum over one exponential as it comes."""
    ratio = torch.linspace(1, 3000, 50021, dtype=torch.float64)
    q = ready(4, rounding='whole', fixed_scale=1.0)
    powers = []
    for one in ratio.tolist():
        number = round(one)
        k = number.bit_length() - 1
        k += number - 2**k >= 2**k / 2
        powers.append(2.0**-k if k < 15 else 0.0)
    assert torch.equal(q(1 / ratio), torch.tensor(powers).double())


@pytest.mark.parametrize('base', ['log2', 'sqrt2'])
def test_linear_takes_the_nearest_value(base):
    q, x = ready(4, base, rounding='linear'), softmax()
    off = (x[..., None] - q.codebook()[0]).abs()
    torch.testing.assert_close((q(x) - x).abs(), off.amin(-1))
    others = [ready(4, base, r)(x) - x for r in ('log', 'inverse')]
    assert all((q(x) - x).norm() < other.norm() for other in others)


@pytest.mark.parametrize('bits', [3, 4, 8])
def test_shift_moves_the_grid(bits):
    c = 0.16997124254703522
    x = torch.nn.functional.gelu(torch.randn(4000, generator=seeded(0)))
    shifted, plain = ready(bits, shift=c, high=2.0), ready(bits, high=2.0 + c)
    want = plain(x.double() + c) - c
    # where both agree on the code, the values are the same
    off = (shifted(x) - want).abs()
    assert (off > 1e-6).float().mean() < 1e-3
    assert shifted.codebook()[0, 0] == torch.tensor(-c)
    assert shifted(ONE * -5) == torch.tensor(-c)


def test_scale_is_the_end_of_the_range_unless_fixed():
    q = ready(3, granularity='channel', fixed_scale=2.0)
    q.set_range(torch.zeros(4), torch.rand(4))
    assert q.scale.tolist() == [2] * 4
    assert q.parameter_bits(4) == 0
    q = LogQuantizer(3, granularity='channel')
    q.set_range(torch.zeros(2), torch.tensor([0.5, 4]))
    assert q.scale.tolist() == [0.5, 4] and q.parameter_bits(2) == 64


def test_levels():
    q = LogQuantizer(2, per_level=True)
    q.set_range(torch.zeros(2, 1), torch.tensor([[1.0], [8.0]]))
    assert [q(ONE * 9, level).item() for level in (0, 1)] == [1, 8]
    assert isinstance(q.encoding(level=1), TableEncoding)
    assert q.encoding(level=1).table.tolist() == [[0, 2, 4, 8]]
    assert q.num_levels() == 2 and q.num_rows() == 2
    with pytest.raises(IndexError, match=r'level 2 of .* 2 levels'):
        q(ONE, 2)


def test_nan_and_infinity():
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5])
    for size in (1, 1 << 16):  # the second by buckets
        y = ready(4)(x.repeat(size))[:4]
        assert y[0].isnan() and y[1:].tolist() == [1, 0, 0.5]


@pytest.mark.parametrize(
    'given, told',
    [
        (dict(powers=17), '2 to 16'),
        (dict(powers=1), '2 to 16'),
        (dict(powers=4.0), '2 to 16'),
        (dict(base='log10'), 'base'),
        (dict(rounding='up'), 'rounding'),
        (dict(shift=-1), 'shift'),
        (dict(fixed_scale=0), 'fixed_scale'),
        (dict(role='weight'), 'LLAQuantizer or a CodebookQuantizer'),
    ],
)
def test_wrong_arguments(given, told):
    with pytest.raises(ValueError, match=told):
        LogQuantizer(4, **given)
