# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Positional encodings of a whole DETR, projected apart."""

import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from tiny_kit import TINY_DETR

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare, run_quantization
from mmdet_ptq.layers import float_mode
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg
from mmdet_ptq.surgery import PositionsSplit
from mmdet_ptq.testing import noise_batches, random_detector

BASE = load_recipe('uniform')
PASSES = [
    dict(type='SplitPositions'),
    BASE['passes'][0],
    dict(type='QuantizeNumerator', divide='quantized'),
    *BASE['passes'][1:],
]
"""Both edits of an attention at once"""


@pytest.fixture(scope='module')
def detr(tmp_path_factory):
    init_default_scope('mmdet')
    path = tmp_path_factory.mktemp('detr') / 'detr.py'
    path.write_text(TINY_DETR)
    return random_detector(path)


@pytest.fixture(scope='module')
def data():
    return noise_batches(4, (64, 80))


def outputs(model, data):
    found = []
    with torch.no_grad():
        for one in data:
            one = model.data_preprocessor(copy.deepcopy(one), False)
            for part in model(**one, mode='tensor'):
                found.append(part.flatten())
    return torch.cat(found)


def config(**args):
    return dict(bits='w8a8', rules=BASE['rules'], passes=PASSES, **args)


def test_where_positions_are_projected(detr, data):
    model = copy.deepcopy(detr)
    session = prepare(model, parse_quant_cfg(config()), data[0], None)
    found = {
        n
        for n, node in session.graph.layers.items()
        if 'position' in node.roles
    }
    attentions = [
        'encoder.layers.0.self_attn',
        *(
            f'decoder.layers.{i}.{part}_attn'
            for i in (0, 1)
            for part in ('self', 'cross')
        ),
    ]
    assert found == {
        f'{one}.attn.{name}'
        for one in attentions
        for name in ('q_pos', 'k_pos')
    }
    # they are in 8 bits also where the others are not
    low = parse_quant_cfg({**config(), 'bits': 'w4a4'})
    session = prepare(copy.deepcopy(detr), low, data[0], None)
    for name, plan in session.plan.layers.items():
        wide = name in found or 'stem' in session.graph.layers[name].roles
        if plan.weight is not None:
            assert plan.weight.bits == (8 if wide else 4), name


def test_the_float_detector_stays_and_an_artefact_has_it(detr, data, tmp_path):
    before = outputs(detr, data)
    model = copy.deepcopy(detr)
    session = quantize_detector(model, copy.deepcopy(data), config())
    assert sum(isinstance(e, PositionsSplit) for e in session.edits) == 5
    assert any('5 attentions project' in n for n in session.notes)
    assert any('5 products take the numerator' in n for n in session.notes)
    ours = outputs(model, data)
    # not its own weights, which are baked
    loss = (ours - before).norm() / before.norm()
    assert 0 < loss < 0.1
    save_quantized(session, tmp_path / 'quantized.pth')
    other = copy.deepcopy(detr)
    load_quantized(other, tmp_path / 'quantized.pth')
    assert torch.equal(outputs(other, data), ours)


def test_float_outputs_are_the_same(detr, data):
    model = copy.deepcopy(detr)
    before = outputs(model, data)
    session = prepare(model, parse_quant_cfg(config()), data[0], None)
    for one in session.config.built_passes[:3]:
        one.run(session)
    with float_mode(model):
        torch.testing.assert_close(
            outputs(model, data), before, rtol=1e-4, atol=1e-5
        )


def test_a_detector_without_attention(data):
    model = random_detector('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    session = quantize_detector(model, copy.deepcopy(data[:1]), config())
    said = ' '.join(session.notes)
    assert 'SplitPositions: no attention of MMCV' in said
    assert 'QuantizeNumerator: no quantized product' in said
    assert said.count('take the recipe gptq in place of gptq_attention') == 2


def test_twice_is_refused():
    passes = [PASSES[0], *PASSES]
    with pytest.raises(Exception, match='SplitPositions is there twice'):
        prepare(
            None, parse_quant_cfg({**config(), 'passes': passes}), None, None
        )


class Store:
    """Keeps progress, and stops the run at one of its writes."""

    def __init__(self, stop_at=None):
        self.saved, self.count, self.stop_at = None, 0, stop_at

    def load(self):
        return copy.deepcopy(self.saved)

    def save(self, progress):
        self.saved = copy.deepcopy(progress)
        self.count += 1
        if self.count == self.stop_at:
            raise KeyboardInterrupt


def test_a_run_that_is_stopped_goes_on(detr, data):
    """The edit is made before the survey, so a resume makes it again."""

    def run(store, resume):
        model, given = copy.deepcopy(detr), copy.deepcopy(data)
        session = run_quantization(
            model,
            parse_quant_cfg(config()),
            given[0],
            Batches(model, given),
            store=store,
            resume=resume,
        )
        return outputs(model, data), [e.to_dict() for e in session.edits]

    whole = Store()
    expected, edits = run(whole, False)
    for stop_at in (1, 3, whole.count - 1):
        store = Store(stop_at)
        with pytest.raises(KeyboardInterrupt):
            run(store, False)
        found, same = run(store, True)
        assert torch.equal(found, expected) and same == edits
