# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a grid does to an output, against the layers themselves."""

import pytest
import torch
from compensate_kit import LAYERS
from search_kit import error_of, every_row, product, quantized

from mmdet_ptq.passes.search_scales.objectives import Squares
from mmdet_ptq.passes.search_scales.operands import Sampled
from mmdet_ptq.passes.search_scales.search import loss_now
from mmdet_ptq.passes.search_scales.terms import Terms, reduced
from mmdet_ptq.quantizers import UniformQuantizer


@pytest.mark.parametrize('kind', LAYERS)
@torch.no_grad()
def test_layers(kind):
    """Weight and input see the whole error of the output, each its way."""
    layer, x = quantized(kind)
    wanted = error_of(layer, x)
    for weighted in (False, True):
        # weights of 1: the full outputs instead of as many as columns
        one = every_row(layer, x)
        groups, count = one.inputs[0].shape[:2]
        outputs = layer(x).movedim(layer.act_axis, -1).shape[-1] // groups
        slopes = torch.ones(groups, count, outputs) if weighted else None
        one = Sampled(0, one.image, one.inputs, slopes)
        terms = Terms(layer, [one], Squares(weighted=weighted))
        for tensor in ('weight', 'input'):
            found = loss_now(terms.of(tensor), Squares())
            assert found == pytest.approx(wanted, rel=1e-4), tensor


@pytest.mark.parametrize('m', [3, 7])
@pytest.mark.parametrize('kind', ['tensor', 'channel'])
@torch.no_grad()
def test_products(kind, m):
    layer, a, b = product(kind, m)
    one = Sampled(0, torch.zeros(3, dtype=torch.int64), (a, b))
    terms = Terms(layer, [one], Squares())
    for port in ('a', 'b'):
        (term,) = terms.of(port)
        found = loss_now([term], Squares())
        assert found == pytest.approx(error_of(layer, a, b), rel=1e-4)
        # entries and heads are blocks, and a head is a row of the grid
        heads = [0, 1] * 3 if kind == 'channel' else [0] * 6
        assert term.rows[:, 0].tolist() == heads
        assert terms.samples(port)[0].shape[0] == len(set(heads))


@torch.no_grad()
def test_tensors_alone():
    layer, x = quantized('conv')
    terms = Terms(layer, [every_row(layer, x)], Squares(of_outputs=False))
    weight = layer.weight - layer.quantized_weight()
    found = loss_now(terms.of('weight'), Squares())
    assert found == pytest.approx(float(weight.square().sum()), rel=1e-5)
    (term,) = terms.of('input')
    shown = terms.samples('input')[0]
    wanted = (layer.act_quantizers['input'](shown) - shown).square().sum()
    assert loss_now([term], Squares()) == pytest.approx(float(wanted))


@torch.no_grad()
def test_second_moments_serve_as_well():
    """|e F + p|^2 = e G e + 2 e (F p) + p p, in double precision."""
    torch.manual_seed(0)
    factor, offset = torch.randn(2, 4, 30), torch.randn(6, 5, 30)
    error = torch.randn(6, 5, 4)
    fewer, shorter, rest = reduced(factor, offset)
    assert fewer.shape == (2, 4, 4) and shorter.shape == (6, 5, 4)
    full = factor.repeat_interleave(3, 0).double()
    e, p = error.double(), offset.double()
    moment = full @ full.mT
    wanted = ((e @ moment) * e).sum((1, 2))
    wanted += 2 * (e * (p @ full.mT)).sum((1, 2)) + p.square().sum((1, 2))
    direct = (e @ full + p).square().sum((1, 2))
    torch.testing.assert_close(direct, wanted)
    ours = error @ fewer.repeat_interleave(3, 0) + shorter
    found = ours.double().square().sum((1, 2)) + rest
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    # nothing to gain
    same = reduced(factor[..., :3], offset[..., :3])
    assert same[0].shape == (2, 4, 3) and same[2] is None


@torch.no_grad()
def test_levels_have_rows_of_their_own():
    layer, x = quantized('conv')
    q = UniformQuantizer(3, granularity='channel', axis=-3, per_level=True)
    q.set_range(-torch.rand(2, 4), torch.rand(2, 4))
    layer.set_quantizer('input', q)
    first = every_row(layer, x)
    second = Sampled(1, first.image, first.inputs)
    terms = Terms(layer, [first, second], Squares()).of('input')
    assert [t.rows.tolist() for t in terms] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    q.set_range(q.range()[0][:1], q.range()[1][:1])
    terms = Terms(layer, [first, second], Squares()).of('input')
    assert [t.rows.tolist() for t in terms] == [[[0, 1, 2, 3]]] * 2
