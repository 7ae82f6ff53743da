# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Groups of each image in a whole detector: Swin, RPN, boxes and masks."""

import copy

import pytest
import torch
from tiny_kit import tiny_detr, tiny_swin

from mmdet_ptq import load_quantized, quantize_detector
from mmdet_ptq.apis import save_quantized
from mmdet_ptq.calibration import Batches, ResumeStore
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.errors import CalibrationError, PTQError, QuantConfigError
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.quantizers import InstanceGroupQuantizer
from mmdet_ptq.testing import noise_batches

CFG = dict(recipe='igq_vit', bits='w4a4')
SIZE = (64, 96)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return tiny_swin(tmp_path_factory.mktemp('config'))


@pytest.fixture(scope='module')
def data():
    """Images of several contrasts, so that they need several grids."""
    batches = noise_batches(3, SIZE)
    for i, batch in enumerate(batches):
        image = batch['inputs'][0].float()
        batch['inputs'] = [(128 + (image - 128) / (2 * i + 1)).byte()]
    return batches


@pytest.fixture(scope='module')
def quantized(detector, data):
    model = copy.deepcopy(detector)
    return quantize_detector(model, data, CFG)


def together(batches):
    """One batch of all."""
    return {
        k: [copy.deepcopy(x) for b in batches for x in b[k]]
        for k in batches[0]
    }


def outputs(samples):
    found = []
    for sample in samples:
        one = sample.pred_instances
        found += [one.bboxes, one.scores, one.labels]
    return found


@torch.no_grad()
def test_two_images_are_as_one_by_one(quantized, data):
    model = quantized.model
    alone = [
        t for b in data[:2] for t in outputs(model.test_step(together([b])))
    ]
    found = outputs(model.test_step(together(data[:2])))
    assert len(found) == 6 and len(found[0])
    assert all(map(torch.equal, found, alone))
    # raw outputs of several images cannot be put together
    both = model.data_preprocessor(together(data[:2]), False)
    with pytest.raises(PTQError, match='2 images'):
        model(**both, mode='tensor')


def test_kinds_of_inputs(quantized):
    found = {}
    for name, layer in quantized.layers.items():
        for port, q in layer.act_quantizers.items():
            kind = type(q).__name__, q.granularity.kind
            found.setdefault(kind, []).append(f'{name}.{port}')
    rows = found['InstanceGroupQuantizer', 'row']
    assert len(rows) == 5 and all(n.endswith('matmul_pv.a') for n in rows)
    channels = found['InstanceGroupQuantizer', 'channel']
    assert len(channels) == 5 * 4 + 3 + 2
    convs = found['UniformQuantizer', 'tensor']
    assert {n.partition('.')[0] for n in convs} == {
        'backbone',
        'neck',
        'rpn_head',
        'roi_head',
    }
    q = quantized.layers['backbone.stages.0.blocks.0.attn.w_msa.qkv']
    q = q.act_quantizers['input']
    assert q.num_groups == 8 and len(q.low.unique()) > 3


@torch.no_grad()
def test_loaded_it_predicts_the_same(quantized, detector, data, tmp_path):
    path = tmp_path / 'quantized.pth'
    save_quantized(quantized, path)
    model = load_quantized(copy.deepcopy(detector), path)
    want = outputs(quantized.model.test_step(together(data)))
    found = outputs(model.test_step(together(data)))
    assert all(map(torch.equal, found, want))


class Stopping(Batches):
    """Stops behind its second image."""

    def predict(self, start=0, after=lambda _: None):
        def stop(i):
            after(i)
            if i == 1:
                raise KeyboardInterrupt

        super().predict(start, stop)


def test_a_stopped_calibration_goes_on(quantized, detector, data, tmp_path):
    config = parse_quant_cfg(CFG)

    def run(feed, resume):
        model = copy.deepcopy(detector)
        store = ResumeStore(tmp_path / 'resume.pth', 'one')
        run_quantization(
            model,
            config,
            data[0],
            feed(model, data),
            store=store,
            resume=resume,
        )
        return named_tensors(model)

    with pytest.raises(KeyboardInterrupt):
        run(Stopping, False)
    found, want = run(Batches, True), named_tensors(quantized.model)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[n], want[n]) for n in want)


def test_what_is_told_before_anything_runs(detector, data):
    model = copy.deepcopy(detector)
    rule = dict(match='@linear', act=dict(num_groups=17))
    with pytest.raises(QuantConfigError, match='17 is more than the 16 chan'):
        quantize_detector(model, data, dict(CFG, rules=[rule]))


def test_calibration_takes_one_image_a_batch(detector, data):
    model = copy.deepcopy(detector)
    with pytest.raises(CalibrationError, match='batches of one image'):
        quantize_detector(model, [together(data)], CFG)


@torch.no_grad()
def test_grids_of_queries_and_keys_are_of_their_image(data, tmp_path):
    """Rows choose by themselves, so several images run in one pass."""
    cfg = dict(recipe='gptq_attention', bits='w4a4')
    with torch.enable_grad():
        session = quantize_detector(tiny_detr(tmp_path), data, cfg)
    kinds = {
        f'{name}.{port}': q.granularity.kind
        for name, layer in session.layers.items()
        for port, q in layer.act_quantizers.items()
        if isinstance(q, InstanceGroupQuantizer)
    }
    # one encoder layer, and two attentions in each of two decoder layers
    assert len(kinds) == 10 and set(kinds.values()) == {'row'}
    model = session.model
    alone = [
        t for b in data[:2] for t in outputs(model.test_step(together([b])))
    ]
    found = outputs(model.test_step(together(data[:2])))
    for x, y in zip(found, alone, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-4)
