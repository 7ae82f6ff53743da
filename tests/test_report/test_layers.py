# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Errors of layers against sums made by hand."""

import copy
import math

import pytest
import torch
from attending import BASE, Attending
from attending import batches as attending_batches

from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.layers import float_mode
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.report.layers import EXACT, decibels, layer_table, sample
from mmdet_ptq.testing import noise_batches, random_detector

CONFIG = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'


@pytest.fixture(scope='module')
def quantized():
    """A table, and what the same session gave to check it by."""
    model = random_detector(CONFIG)
    batches = noise_batches(2, (64, 64))
    kept = {}

    def look(session):
        state = copy.deepcopy(session.model.state_dict())
        kept['table'] = layer_table(session, images=1)
        after = session.model.state_dict()
        kept['same'] = all(torch.equal(state[k], after[k]) for k in state)
        name = 'backbone.stem.conv.conv'
        layer = session.layers[name]
        seen = []
        hook = layer.register_forward_hook(lambda *a: seen.append(a[2]))
        batch = session.model.data_preprocessor(batches[0], False)
        with torch.no_grad():
            with float_mode(session.model):
                session.model(**batch, mode='tensor')
            session.model(**batch, mode='tensor')
        hook.remove()
        kept['seen'] = seen
        kept['weights'] = layer.weight.clone(), layer.quantized_weight()

    config = parse_quant_cfg(dict(recipe='minmax', bits='w4a4'))
    session = run_quantization(
        model,
        config,
        batches[0],
        Batches(model, batches),
        before_freeze=look,
    )
    return kept, session


def ratio(signal, noise):
    return 10 * math.log10(float(signal.square().sum() / noise.square().sum()))


def test_a_layer_by_hand(quantized):
    kept, _ = quantized
    rows = {row['name']: row for row in kept['table']['layers']}
    row = rows['backbone.stem.conv.conv']
    before, after = (sample(y).double() for y in kept['seen'])
    assert row['sqnr'] == pytest.approx(
        ratio(before, before - after), abs=0.01
    )
    cosine = before @ after / (before.norm() * after.norm())
    assert row['cosine'] == pytest.approx(float(cosine), abs=1e-5)
    weight, rounded = (w.double() for w in kept['weights'])
    expected = ratio(weight, weight - rounded)
    assert row['weight_sqnr'] == pytest.approx(expected, abs=0.01)
    assert row['weights']['codes'] == 2 ** row['bits'][0]
    assert row['part'] == 'stem' and row['weight'] == 'UniformQuantizer'


def test_all_layers_in_their_order(quantized):
    kept, session = quantized
    table = kept['table']
    assert table['images'] == 1 and table['aligned']
    assert [r['name'] for r in table['layers']] == list(session.plan.layers)
    assert all(r['sqnr'] is not None for r in table['layers'])


def test_both_operands_of_a_product():
    tables = []
    model, data = Attending().eval(), attending_batches(2)
    config = parse_quant_cfg(dict(BASE, bits='w8a4'))
    run_quantization(
        model,
        config,
        data[0],
        Batches(model, data),
        before_freeze=lambda one: tables.append(layer_table(one, images=1)),
    )
    found = {one['name']: one for one in tables[0]['layers']}
    product = found['attention.matmul_qk']
    assert product['acts']['codes'] == product['others']['codes'] == 16
    assert product['acts']['counts'] != product['others']['counts']
    assert found['first']['acts'] and found['first']['others'] is None


def test_nothing_of_the_model_changed(quantized):
    assert quantized[0]['same']


@pytest.mark.parametrize(
    ('signal', 'noise', 'found'),
    [(1, 0.01, 20), (1, 0, EXACT), (0, 0, None), (0, 1, None), (1, 1, 0)],
)
def test_decibels(signal, noise, found):
    assert decibels(signal, noise) == found


def test_a_sample_is_bounded_and_at_the_same_places():
    x = torch.arange(100000.0).view(10, 100, 100)
    one = sample(x, 1000)
    assert 900 < len(one) <= 1000 and torch.equal(one, sample(x, 1000))
    assert len(one.remainder(100).unique()) == 100
    small = torch.arange(10.0)
    assert torch.equal(sample(small), small)
