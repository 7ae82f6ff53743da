# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which products take a softmax of whole logits, and how fine these are."""

import math

import pytest
import torch
from attending import BASE, Attending, batches, quantized

from mmdet_ptq import quantize_detector
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.surgery import WholeSoftmax

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def logits_of(model):
    """How far logits lie below the largest of their row, at most."""
    found = []
    attention = model.attention
    with torch.no_grad():
        for batch in batches():
            x = model.first(torch.stack(batch['inputs'])).flatten(2)
            q, k, _ = torch.nn.functional.linear(
                x.mT, attention.in_proj_weight, attention.in_proj_bias
            ).chunk(3, -1)
            q, k = (t.view(1, -1, 4, 4).transpose(1, 2) for t in (q, k))
            logits = q @ k.mT / 2
            found.append(logits.amax(-1, keepdim=True) - logits)
    return float(torch.cat(found).max())


@pytest.mark.parametrize('bits', [6, 8])
def test_steps_come_from_the_logits(bits):
    one = dict(type='IntegerSoftmax', bits=bits)
    model, session = quantized(one)
    edits = [e for e in session.edits if isinstance(e, WholeSoftmax)]
    most = max(logits_of(Attending().eval()), math.log(2))
    steps = math.floor(math.log(2) / (most / (2**bits - 1)))
    assert edits == [WholeSoftmax('attention.matmul_pv', steps)]
    assert model.attention.matmul_pv.softmax_steps == steps
    assert any(
        f'1 products take a softmax of {bits}' in n for n in session.notes
    )


def test_masked_logits_are_left_out():
    """Swin adds -100 to them, which a float exponential does not drop."""

    class Masking(Attending):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            x = self.first(torch.stack(list(inputs)).float())
            x = x.flatten(2).transpose(1, 2)
            # a query sees the keys before it and itself
            mask = x.new_full((x.shape[1],) * 2, self.masked).triu(1)
            x = x + self.attention(x, x, x, attn_mask=mask)[0]
            return self.last(x)

    steps = []
    for masked in (-100.0, -1e9):
        model = Masking().eval()
        model.masked = masked
        quantize_detector(
            model,
            batches(),
            dict(
                bits='w8a4',
                rules=BASE['rules'],
                passes=[dict(type='IntegerSoftmax'), *BASE['passes']],
            ),
        )
        steps.append(model.attention.matmul_pv.softmax_steps)
    assert steps[0] == steps[1] > math.floor(255 / 30)


def test_what_is_float_stays_as_it_is():
    rules = [r for r in BASE['rules'] if r['match'] != '@matmul']
    rules.append(dict(match='@matmul', skip=True))
    model, session = quantized(dict(type='IntegerSoftmax'), rules=rules)
    assert model.attention.matmul_pv.softmax_steps == 0
    assert any('no quantized product has' in n for n in session.notes)


def test_logits_that_are_far_apart():
    """The least output may be so small that 1 over it is infinite."""
    assert math.isinf(1 / torch.tensor(1e-42))
    passes = [dict(type='IntegerSoftmax'), *BASE['passes']]
    for factor in (3, 6, 9, 12, 15, 20, 25, 30):
        data = batches()
        for one in data:
            one['inputs'] = [x * factor for x in one['inputs']]
        quantize_detector(
            Attending().eval(),
            data,
            dict(bits='w4a4', rules=BASE['rules'], passes=passes),
        )


def test_logits_that_are_no_numbers():
    data = batches()
    data[-1]['inputs'][0][0] = math.nan
    passes = [dict(type='IntegerSoftmax'), *BASE['passes']]
    with pytest.raises(NumericError, match='matmul_pv: NaN in its a, '):
        quantize_detector(
            Attending().eval(),
            data,
            dict(bits='w4a4', rules=BASE['rules'], passes=passes),
        )


@pytest.mark.parametrize(
    'passes, match',
    [
        ([dict(type='IntegerSoftmax', bits=4)], 'bits'),
        ([dict(type='IntegerSoftmax', bits=17)], 'from 5 to 16, got 17'),
        ([dict(type='IntegerSoftmax')] * 2, 'is there twice'),
        (
            [dict(type='IntegerSoftmax'), dict(type='QuantizeNumerator')],
            'QuantizeNumerator and IntegerSoftmax cannot go together',
        ),
    ],
)
def test_bad_input(passes, match):
    with pytest.raises(QuantConfigError, match=match):
        quantized(*passes)


def test_its_place():
    passes = [*BASE['passes'], dict(type='IntegerSoftmax')]
    with pytest.raises(QuantConfigError, match='comes after SetRanges'):
        quantize_detector(
            Attending().eval(),
            batches(),
            dict(bits='w4a4', rules=BASE['rules'], passes=passes),
        )
