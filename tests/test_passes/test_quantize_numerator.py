# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which products take the numerator of their softmax."""

import pytest
from attending import BASE, Attending, batches, quantized

from mmdet_ptq import quantize_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.surgery import SoftmaxNumerator

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def test_it_is_observed_where_it_is_quantized():
    model, session = quantized(dict(type='QuantizeNumerator'))
    edits = [e for e in session.edits if isinstance(e, SoftmaxNumerator)]
    assert [e.layer for e in edits] == ['attention.matmul_pv']
    # the maximum of every row is 1, and ranges of heads nearly reach it
    _, high = model.attention.matmul_pv.act_quantizers['a'].range()
    assert high.shape == (1, 4) and bool((high > 0.7).all())
    _, plain = quantized()[0].attention.matmul_pv.act_quantizers['a'].range()
    assert bool((plain < 0.7 * high).all())


def test_what_is_float_stays_as_it_is():
    rules = [r for r in BASE['rules'] if r['match'] != '@matmul']
    rules.append(dict(match='@matmul', skip=True))
    model, session = quantized(dict(type='QuantizeNumerator'), rules=rules)
    assert model.attention.matmul_pv.numerator == ''
    assert any('no quantized product has' in n for n in session.notes)


@pytest.mark.parametrize(
    'passes, match',
    [
        ([dict(type='QuantizeNumerator', divide='both')], 'divide'),
        ([dict(type='QuantizeNumerator')] * 2, 'is there twice'),
    ],
)
def test_bad_input(passes, match):
    with pytest.raises(QuantConfigError, match=match):
        quantized(*passes)


def test_its_place():
    passes = [*BASE['passes'], dict(type='QuantizeNumerator')]
    with pytest.raises(QuantConfigError, match='comes after Observe'):
        quantize_detector(
            Attending().eval(),
            batches(),
            dict(bits='w4a4', rules=BASE['rules'], passes=passes),
        )
