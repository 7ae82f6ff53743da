# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scopes and widths of softmax on whole detectors: what each layer becomes.

The layers are written down by their names in MMDetection.
"""

import copy
import functools

import pytest
from adapter_kit import detector

from mmdet_ptq.engine.survey import survey_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.plan import make_plan
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.surgery import decompose
from mmdet_ptq.testing import noise_batches

STEM = 'backbone.patch_embed.projection'
LAST = [
    'rpn_head.rpn_cls',
    'rpn_head.rpn_reg',
    'roi_head.bbox_head.fc_cls',
    'roi_head.bbox_head.fc_reg',
    'roi_head.mask_head.conv_logits',
]
UPSAMPLE = 'roi_head.mask_head.upsample'


@functools.cache
def surveyed(name):
    model, size = detector(name)
    model = copy.deepcopy(model)
    decompose(model)
    return survey_detector(model, noise_batches(1, (size, size))[0])


def widths(name, *rules, **quant_cfg):
    """Bits of the weight and of each input, by layer."""
    cfg = dict(dict(recipe='uniform', bits='w4a6'), **quant_cfg)
    config = parse_quant_cfg(dict(cfg, rules=list(rules)))
    layers = make_plan(config, surveyed(name), {}).layers
    return {
        n: tuple(s and s.bits for s in (one.weight, *one.acts.values()))
        for n, one in layers.items()
    }


def test_without_a_scope():
    found = widths('mask_rcnn')
    assert found[STEM] == (8, 8) and found[UPSAMPLE] == (4, 6)
    floats = [n for n, bits in found.items() if bits == (None, None)]
    assert floats == LAST


@pytest.mark.parametrize(
    ('scope', 'expected'),
    [
        (
            'repq_det',
            {STEM: (4, 8), UPSAMPLE: (None, None)}
            | dict.fromkeys(LAST, (4, 6)),
        ),
        (
            'aphq_det',
            {STEM: (4, None), UPSAMPLE: (None, None)}
            | dict.fromkeys(LAST, (4, 6)),
        ),
        ('first_last_8', dict.fromkeys(LAST, (8, 8))),
    ],
)
def test_what_a_scope_changes(scope, expected):
    before, found = widths('mask_rcnn'), widths('mask_rcnn', scope=scope)
    changed = {n: bits for n, bits in found.items() if bits != before[n]}
    assert changed == expected


def test_backbone_only():
    before = widths('mask_rcnn')
    found = widths('mask_rcnn', scope='backbone_only')
    inside = {n for n in found if n.startswith('backbone.')}
    assert 0 < len(inside) < len(found)
    assert {n for n, bits in found.items() if any(bits)} == inside
    assert all(found[n] == before[n] for n in inside)


@pytest.mark.parametrize('recipe', ['subsetq', 'reg_ptq'])
def test_eight_bits_on_a_uniform_grid(recipe):
    """Also where a recipe's own quantizer has none, or means other things."""
    cfg = dict(recipe=recipe, bits='w4a4', scope='first_last_8')
    layers = make_plan(parse_quant_cfg(cfg), surveyed('mask_rcnn'), {}).layers
    for name in (STEM, *LAST):
        spec = layers[name].weight
        assert (spec.type, spec.bits) == ('UniformQuantizer', 8)
        assert spec.args['granularity'] == 'channel'
    assert layers[UPSAMPLE].weight.type != 'UniformQuantizer'


def test_rules_of_the_user_come_last():
    mine = dict(match='@mask', weight=dict(bits=3))
    found = widths('mask_rcnn', mine, scope='first_last_8')
    assert found[LAST[-1]] == (3, 8) and found[LAST[0]] == (8, 8)
    skipped = dict(match='@head', weight=dict(bits=3))
    with pytest.raises(QuantConfigError, match=r'rules\[0\].*skipped by'):
        widths('mask_rcnn', skipped, scope='backbone_only')


@pytest.mark.parametrize('name', ['mask_rcnn', 'detr', 'deformable'])
def test_bits_of_softmax(name):
    """Those inputs and no others, wherever the attention lies."""
    ports = {
        (node.name, port)
        for node in surveyed(name).layers.values()
        for port, roles in node.port_roles.items()
        if 'softmax' in roles
    }
    config = parse_quant_cfg(dict(recipe='uniform', bits='w4a6s3'))
    found = make_plan(config, surveyed(name), {}).layers
    three = {
        (n, port)
        for n, one in found.items()
        for port, spec in one.acts.items()
        if spec is not None and spec.bits == 3
    }
    assert three == ports and ports
    assert {port for _, port in ports} == {'a'}


def test_bits_of_softmax_where_none_is_quantized():
    with pytest.raises(QuantConfigError, match=r'softmax.*leave s3 out'):
        widths('faster_rcnn', bits='w4a4s3')
    with pytest.raises(QuantConfigError, match='leave them float'):
        widths('detr', bits='w4a4s3', scope='backbone_only')
