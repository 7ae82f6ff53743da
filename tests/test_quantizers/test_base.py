# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import (
    FACTORIES,
    bits_of,
    check_all,
    check_encoding,
    fit,
    tensors,
)

from mmdet_ptq.errors import CalibrationError
from mmdet_ptq.quantizers import (
    BaseQuantizer,
    FitsTensor,
    LLAQuantizer,
    Ranges,
    Searchable,
    UniformEncoding,
)
from mmdet_ptq.registry import QUANTIZERS

each = pytest.mark.parametrize('make', FACTORIES.values(), ids=FACTORIES)


@each
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    x=tensors(),
    data=st.data(),
    shrink=st.sampled_from([1.0, 0.3, 0.0]),
)
def test_promises(make, x, data, shrink):
    bits = data.draw(st.sampled_from(bits_of(make)))
    check_all(make, bits, x, shrink)


@each
def test_trial_is_forward(make):
    x = torch.randn(2, 6, 4, 4)
    for bits in {2, 4, 8} & {*bits_of(make)}:
        q = fit(make(bits), x)
        if not isinstance(q, Searchable):
            return
        rows = q.granularity.rows(x)
        ends = rows.amin(1)[:, None], rows.amax(1)[:, None]
        # a candidate for nothing, and then the range in force
        low, high = (torch.cat([e * 3, e], 1) for e in ends)
        got = q.trial(rows, Ranges(low, high))
        assert got.shape == (*low.shape, rows.shape[1])
        want = q.granularity.rows(q(x))
        assert torch.equal(got[:, 1], want)


@each
def test_without_a_range(make):
    q = make(4)
    assert not bool(q.initialized)
    with pytest.raises(CalibrationError, match='calibrate'):
        q(torch.randn(2, 6, 4, 4))


@each
def test_straight_through(make):
    x = torch.randn(2, 6, 4, 4, requires_grad=True)
    q = fit(make(4), x.detach(), 0.5).train()
    y = q(x)
    assert torch.equal(y, q(x.detach()))
    y.sum().backward()
    slopes = x.grad.unique()
    assert 0 < x.grad.mean() < 1
    if isinstance(q, LLAQuantizer):
        # multiples of the input: 0, or those of one rounding of psi
        widest = 2 ** (1 / q.parameters_of()[0].min().item())
        assert slopes[0] == 0 and slopes[-1] < widest**0.5 * (1 + 1e-5)
        assert slopes[1] > 2 / (1 + widest) * (1 - 1e-5)
    else:
        assert set(slopes.tolist()) == {0, 1}


EDGES = {
    'zero': torch.zeros(2, 6, 2, 2),
    'constant': torch.full((2, 6, 2, 2), -3.7),
    'tiny': torch.full((2, 6, 2, 2), 1e-38),
    'huge': torch.full((2, 6, 2, 2), 3e38),
    'above': torch.rand(2, 6, 2, 2) + 5,
    'below': -torch.rand(2, 6, 2, 2) - 5,
    'empty': torch.empty(2, 6, 0, 4),
    'empty batch': torch.empty(0, 6, 2, 4),
}


@each
@pytest.mark.parametrize('edge', EDGES)
def test_edges(make, edge):
    x = EDGES[edge]
    rows = make(4).granularity.num_rows(x.shape)
    for bits in {2, 4, 8} & {*bits_of(make)}:
        if rows:
            check_all(make, bits, x)
        fitted = make(bits)
        if rows and isinstance(fitted, FitsTensor):
            fitted.fit(x)
            with torch.no_grad():
                y = fitted(x)
            assert torch.isfinite(y).all() and y.shape == x.shape
            check_encoding(fitted, x, y)


def unlike(made, registered):
    """What is on one of two lists of classes alone."""
    return {c.__name__ for c in set(made) ^ set(registered)}


def test_every_registered_quantizer_is_here():
    made = {type(make(4)) for make in FACTORIES.values()}
    QUANTIZERS.import_from_location()
    assert unlike(made, QUANTIZERS.module_dict.values()) == set()
    assert 'UniformQuantizer' in QUANTIZERS.module_dict


def test_one_more_would_be_missed():
    made = {type(make(4)) for make in FACTORIES.values()}
    more = type('MyQuantizer', (LLAQuantizer,), {})
    assert unlike(made, {*made, more}) == {'MyQuantizer'}
    assert unlike({*made, more}, made) == {'MyQuantizer'}


@each
def test_a_state_goes_with_its_settings(make):
    """Loaded into the same, refused by another, whatever the shapes."""
    few, many = bits_of(make)[0], bits_of(make)[-1]
    x = torch.linspace(-1, 1, 96).reshape(2, 6, 8)
    source = make(many)
    fit(source, x)
    state = source.state_dict()
    same = make(many)
    same.load_state_dict(state)
    assert torch.equal(same(x), source(x))
    if few == many:
        return
    other = make(few)
    fit(other, x)
    before = other(x)
    with pytest.raises(RuntimeError, match=r'the same recipe') as told:
        other.load_state_dict(state)
    assert f'bits={many}' in str(told.value)
    assert f'bits={few}' in str(told.value)
    assert torch.equal(other(x), before)


def test_a_quantizer_from_outside_passes_gradients_straight_through():
    """One that says nothing else of its gradient can be learned behind."""

    class Halves(BaseQuantizer):
        def set_range(self, low, high):
            self.initialized.fill_(True)

        def encoding(self, x=None, level=0):
            zero = torch.zeros(1, dtype=torch.int32)
            half = torch.tensor([0.5])
            return UniformEncoding(2, self.granularity, half, zero, -2, 1)

        def num_rows(self):
            return 1

        def parameter_bits(self, rows):
            return 0

    for dtype in (torch.float32, torch.float16):
        x = torch.tensor([0.3, -0.6, 9.0, -9.0], dtype=dtype)
        q = Halves(2)
        plain = q(x)
        assert plain.tolist() == [0.5, -0.5, 0.5, -1.0]
        y = q(x.requires_grad_())
        assert torch.equal(y, plain) and y.dtype == dtype
        slope = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)
        y.backward(slope)
        assert torch.equal(x.grad, slope)
        with torch.no_grad():
            assert not q(x).requires_grad
