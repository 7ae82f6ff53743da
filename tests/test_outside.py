# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A quantizer, a pass and a recipe that the package has never heard of."""

import json
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from promises import check_all

from mmdet_ptq import load_quantized
from mmdet_ptq.layers import quant_layers
from mmdet_ptq.quant_cfg.recipes import RECIPE_DIR
from mmdet_ptq.registry import PASSES, QUANTIZERS, find_class

PLUGIN = '''
import torch

from mmdet_ptq.passes import BasePass
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.registry import PASSES, QUANTIZERS
from mmdet_ptq.surgery import AddedBias


@QUANTIZERS.register_module()
class PowerOfTwoSteps(UniformQuantizer):
    """Steps are powers of two: a shift takes the place of a product."""

    def grid(self, low, high):
        scale, zero = super().grid(low, high)
        part, exponent = torch.frexp(scale)
        step = torch.exp2(exponent - (part == 0.5).int())
        return step, (zero * scale / step).round().int()

    def learn_step(self, enabled=True):
        raise ValueError('a PowerOfTwoSteps has no step to learn')


@PASSES.register_module()
class GiveBiases(BasePass):
    """Where a layer has no bias, one that takes the mean error away."""

    needs = frozenset({'observers'})

    def run(self, session):
        for name, layer in session.layers.items():
            seen = session.stats.of((name, 'input'))
            if layer.weight_quantizer and layer.bias is None and seen:
                session.edit(AddedBias(name))
                middle = (seen.low.amin() + seen.high.amax()) / 2
                error = layer.quantized_weight() - layer.weight
                layer.shift_bias(-middle * error.flatten(1).sum(1))
'''

RECIPE = f"""
_base_ = '{RECIPE_DIR}/uniform.py'
steps = dict(type='PowerOfTwoSteps')
rules = [
    dict(match='*', weight=dict(granularity='channel', **steps), act=steps),
    *_base_.rules[-2:],
]
passes = [*_base_.passes[1:3], dict(type='GiveBiases')]
del steps
"""


REGISTRIES = (PASSES, QUANTIZERS)
NAME = 'plugin_from_outside'


def lines(text):
    return sum(bool(line.strip()) for line in text.splitlines())


@pytest.fixture
def outside(tiny, tmp_path, monkeypatch):
    """Files of somebody else; what they register is forgotten in the end."""
    for registry in REGISTRIES:
        registry.import_from_location()
    before = [dict(registry.module_dict) for registry in REGISTRIES]

    def forget():
        sys.modules.pop(NAME, None)
        for registry, known in zip(REGISTRIES, before, strict=True):
            registry.module_dict.clear()
            registry.module_dict.update(known)

    (tmp_path / f'{NAME}.py').write_text(PLUGIN)
    recipe, config = tmp_path / 'steps.py', tmp_path / 'config.py'
    found = tmp_path / 'found.pkl'
    recipe.write_text(RECIPE)
    config.write_text(
        f"_base_ = r'{tiny.config['retinanet']}'\n"
        f'custom_imports = dict(imports=[{NAME!r}])\n'
        'test_evaluator = [_base_.test_evaluator, '
        f"dict(type='DumpDetResults', out_file_path='{found}')]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield SimpleNamespace(
        recipe=recipe, config=config, found=found, forget=forget
    )
    forget()


def metrics_of(work):
    """The metrics that a test run left behind."""
    (found,) = work.glob('*/*.json')
    metrics = json.loads(found.read_text())
    return {k: v for k, v in metrics.items() if k.startswith('coco/')}


def detected(path):
    """What was found in each image, taken out of the file."""
    images = pickle.loads(path.read_bytes())
    path.unlink()
    return [image['pred_instances'] for image in images]


def test_all_of_it_is_short():
    assert 0 < lines(PLUGIN) + lines(RECIPE) < 40


def test_quantized_saved_and_tested_again(outside, ptq):
    """By the command line, which is told of the files by a config."""
    run = ptq(
        '--recipe',
        outside.recipe,
        '--bits',
        'w4a8',
        '--no-float-eval',
        config=outside.config,
    )
    assert run.code == 0, run.err
    boxes = detected(outside.found)
    assert all(len(image['scores'].unique()) > 9 for image in boxes)
    outside.forget()
    # what is left of the plugin is what the dumped config says
    again = ptq(
        config=next(run.work.glob('*.py')),
        checkpoint=run.artefact,
        work=run.work / 'again',
    )
    assert again.code == 0, again.err
    assert metrics_of(again.work) == run.result['quantized'] != {}
    for one, other in zip(boxes, detected(outside.found), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_in_the_artefact(outside, ptq):
    run = ptq(
        *('--recipe', outside.recipe, '--bits', 'w4a8', '--no-float-eval'),
        config=outside.config,
    )
    saved = torch.load(run.artefact, weights_only=True)
    edits = [e for e in saved['mmdet_ptq']['edits']]
    assert {e['type'] for e in edits} == {'AddedBias'}
    assert 'backbone.conv1' in {e['layer'] for e in edits}
    model = MODELS.build(Config.fromfile(outside.config).model)
    assert model.backbone.conv1.bias is None
    load_quantized(model, run.artefact)
    assert model.backbone.conv1.bias.abs().sum() > 0
    layers = quant_layers(model)
    quantized = [n for n, m in layers.items() if m.weight_quantizer]
    assert sorted(saved['codes']) == sorted(quantized) != []
    for name in quantized:
        weight = layers[name].weight.detach()
        encoding = layers[name].weight_quantizer.encoding()
        assert (torch.frexp(encoding.scale).mantissa == 0.5).all()
        codes = encoding.encode(weight)
        assert codes.unique().numel() <= 2**encoding.bits
        packed = encoding.pack(codes)
        assert torch.equal(packed, saved['codes'][name])
        assert torch.equal(encoding.unpack(packed, weight.shape), codes)
        assert torch.equal(encoding.decode(codes), weight)


def test_the_quantizer_keeps_the_promises(outside):
    Config.fromfile(outside.config)
    kind = find_class(QUANTIZERS, 'PowerOfTwoSteps')
    for bits in (2, 4, 8):
        for symmetric in (False, True):
            for x in (torch.randn(2, 6, 4, 4), torch.zeros(2, 6, 0, 4)):
                check_all(lambda b, s=symmetric: kind(b, s), bits, x)


def test_a_recipe_needs_its_plugin(outside, ptq, tiny):
    """Without the import there is no such quantizer, and that is said."""
    run = ptq('--recipe', outside.recipe, '--bits', 'w4a8')
    assert run.code == 1
    assert "'PowerOfTwoSteps'" in run.err and 'UniformQuantizer' in run.err
