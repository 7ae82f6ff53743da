# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a survey finds in MMDetection's own detectors."""

import time

import pytest
import torch
from torch import nn


def few_boxes(cfg):
    """Two-stage detectors: a handful of proposals, for speed."""
    cfg.test_cfg.rpn.update(nms_pre=40, max_per_img=8)


def fewer_layers(cfg):
    cfg.encoder.num_layers = 2
    cfg.decoder.num_layers = 2
    if 'num_queries' in cfg:
        cfg.num_queries = 20


def levels(pattern, count=3):
    return {pattern.format(i) for i in range(count)}


RPN = {'rpn_head.rpn_cls', 'rpn_head.rpn_reg'}
ROI = (
    RPN
    | {f'roi_head.bbox_head.fc_{k}' for k in ('cls', 'reg')}
    | {'roi_head.mask_head.conv_logits'}
)
R50_BLOCKS = {
    f'backbone.layer{i}.{j}'
    for i, n in enumerate((3, 4, 6, 3), 1)
    for j in range(n)
}
BRANCHES = levels('bbox_head.cls_branches.{}', 3) | levels(
    'bbox_head.reg_branches.{}.4', 3
)

#: name: config, input size, edit, stem, prediction, batch norms left
DETECTORS = {
    'retinanet': (
        'retinanet/retinanet_r50_fpn_1x_coco.py',
        128,
        None,
        'backbone.conv1',
        {'bbox_head.retina_cls', 'bbox_head.retina_reg'},
        0,
    ),
    'yolof': (
        'yolof/yolof_r50-c5_8xb8-1x_coco.py',
        128,
        None,
        'backbone.conv1',
        {f'bbox_head.{k}' for k in ('cls_score', 'bbox_pred', 'object_pred')},
        0,
    ),
    'fcos': (
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        128,
        None,
        'backbone.conv1',
        {f'bbox_head.conv_{k}' for k in ('cls', 'reg', 'centerness')},
        0,
    ),
    'atss': (
        'atss/atss_r50_fpn_1x_coco.py',
        128,
        None,
        'backbone.conv1',
        {f'bbox_head.atss_{k}' for k in ('cls', 'reg', 'centerness')},
        0,
    ),
    # its shared convs have norms of their own on each level
    'rtmdet': (
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        128,
        None,
        'backbone.stem.0.conv',
        levels('bbox_head.rtm_cls.{}') | levels('bbox_head.rtm_reg.{}'),
        12,
    ),
    'yolox': (
        'yolox/yolox_tiny_8xb8-300e_coco.py',
        128,
        None,
        'backbone.stem.conv.conv',
        {
            f'bbox_head.multi_level_conv_{k}.{i}'
            for i in range(3)
            for k in ('cls', 'reg', 'obj')
        },
        0,
    ),
    'ssd': (
        'ssd/ssd300_coco.py',
        300,
        None,
        'backbone.features.0',
        levels('bbox_head.cls_convs.{}.0', 6)
        | levels('bbox_head.reg_convs.{}.0', 6),
        0,
    ),
    'detr': (
        'detr/detr_r50_8xb2-150e_coco.py',
        128,
        fewer_layers,
        'backbone.conv1',
        {'bbox_head.fc_cls', 'bbox_head.fc_reg'},
        0,
    ),
    # a linear of the queries makes reference boxes that outputs add to
    'deformable_detr': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        128,
        fewer_layers,
        'backbone.conv1',
        {
            'reference_points_fc',
            'bbox_head.cls_branches.0',
            'bbox_head.reg_branches.0.4',
        },
        0,
    ),
    'deformable_detr_two_stage': (
        'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_'
        'coco.py',
        128,
        fewer_layers,
        'backbone.conv1',
        BRANCHES,
        0,
    ),
    'dino': (
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        128,
        fewer_layers,
        'backbone.conv1',
        BRANCHES,
        0,
    ),
    'mask_rcnn_swin': (
        'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        128,
        few_boxes,
        'backbone.patch_embed.projection',
        ROI,
        0,
    ),
    'cascade_mask_rcnn': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        128,
        few_boxes,
        'backbone.conv1',
        RPN
        | levels('roi_head.bbox_head.{}.fc_cls')
        | levels('roi_head.bbox_head.{}.fc_reg')
        | levels('roi_head.mask_head.{}.conv_logits'),
        0,
    ),
}


@pytest.fixture(scope='module')
def surveys(kit):
    """Builds and surveys each detector once."""
    done = {}

    def get(name):
        if name not in done:
            path, size, edit = DETECTORS[name][:3]
            model = kit.build(path, edit)
            image, samples = kit.inputs(size)
            graph = kit.look(
                model, lambda: model(image, samples, mode='tensor')
            )
            norms = [
                n
                for n, m in model.named_modules()
                if isinstance(m, nn.modules.batchnorm._BatchNorm)
            ]
            done[name] = graph, norms
        return done[name]

    return get


@pytest.mark.parametrize('name', list(DETECTORS))
def test_roles_and_invariants(surveys, kit, name):
    *_, stem, prediction, left = DETECTORS[name]
    graph, norms = surveys(name)
    assert kit.with_role(graph, 'stem') == [stem]
    assert set(kit.with_role(graph, 'prediction')) == prediction
    assert len(norms) - len(graph.bn_folds) == left
    assert graph.uncalled == []
    ports = [(n, p) for n, layer in graph.layers.items() for p in layer.ports]
    assert sorted(p for g in graph.shared_ports for p in g) == sorted(ports)
    layers = [n for unit in graph.units for n in unit.layers]
    assert sorted(layers) == sorted(graph.layers)
    blocks = {u.name for u in graph.units if len(u.layers) > 1}
    if stem == 'backbone.conv1':
        assert {b for b in blocks if b[:4] == 'back'} == R50_BLOCKS
    assert not any(b in ('backbone', 'neck', 'bbox_head') for b in blocks)
    assert max(len(u.layers) for u in graph.units) <= 6


def test_retinanet_head_is_shared(surveys):
    graph, _ = surveys('retinanet')
    head = {
        n: layer for n, layer in graph.layers.items() if 'head' in layer.roles
    }
    assert len(head) == 10
    assert {len(layer.calls) for layer in head.values()} == {5}
    tied = next(
        g
        for g in graph.shared_ports
        if ('bbox_head.cls_convs.0.conv', 'input') in g
    )
    # both towers read the pyramid, and its top levels read one another
    assert ('bbox_head.reg_convs.0.conv', 'input') in tied


def test_rpn_and_mask_roles(surveys, kit):
    graph, _ = surveys('mask_rcnn_swin')
    assert kit.with_role(graph, 'rpn') == [
        'rpn_head.rpn_conv',
        'rpn_head.rpn_cls',
        'rpn_head.rpn_reg',
    ]
    assert set(kit.with_role(graph, 'rpn')) < set(kit.with_role(graph, 'head'))
    assert len(kit.with_role(graph, 'mask')) == 6


def test_swin_blocks(surveys, kit):
    graph, _ = surveys('mask_rcnn_swin')
    block = 'backbone.stages.0.blocks.1'
    parts = (
        'attn.w_msa.qkv',
        'attn.w_msa.qk',
        'attn.w_msa.pv',
        'attn.w_msa.proj',
        'ffn.layers.0.0',
        'ffn.layers.1',
    )
    unit = next(u for u in graph.units if u.name == block)
    assert unit.layers == tuple(f'{block}.{p}' for p in parts)
    attention = kit.with_role(graph, 'attention')
    assert len(attention) == 12 * 4
    assert attention[4:8] == list(unit.layers[:4])
    ports = {
        n: {p for p, r in layer.port_roles.items() for _ in r}
        for n, layer in graph.layers.items()
    }
    assert ports[f'{block}.attn.w_msa.pv'] == {'a'}
    assert graph.layers[f'{block}.ffn.layers.1'].port_roles == {
        'input': {'gelu'}
    }
    links = {link.norm: link for link in graph.norm_links}
    # two in each block, three mergings, four outputs to the neck
    assert len(links) == 24 + 3 + 4
    assert all(link.exclusive for link in links.values())
    first = links[f'{block}.norm1']
    assert first.layers == unit.layers[:1]
    assert {'pad', 'roll'} <= set(first.via)
    assert links[f'{block}.norm2'].via == ()
    assert links['backbone.stages.0.downsample.norm'].layers == (
        'backbone.stages.0.downsample.reduction',
    )


def test_detr_norms_are_not_exclusive(surveys, kit):
    graph, _ = surveys('detr')
    inner = [link for link in graph.norm_links if 'layers' in link.norm]
    assert inner and not any(link.exclusive for link in inner)
    assert len(kit.with_role(graph, 'attention')) == 6 * 6
    units = {u.name: len(u.layers) for u in graph.units}
    assert units['encoder.layers.0.self_attn'] == 6
    assert units['decoder.layers.1.cross_attn'] == 6
    assert units['decoder.layers.1.ffn'] == 2


@pytest.mark.parametrize('name', ['deformable_detr', 'dino'])
def test_sampling_offsets(surveys, kit, name):
    graph, _ = surveys(name)
    assert kit.with_role(graph, 'offset') == [
        f'{part}.layers.{i}.{attn}.sampling_offsets'
        for part, attn in (('encoder', 'self_attn'), ('decoder', 'cross_attn'))
        for i in range(2)
    ]


def test_same_output_and_no_hooks(kit):
    model = kit.build('retinanet/retinanet_r18_fpn_1x_coco.py')
    image, samples = kit.inputs(128)
    got = []
    with torch.no_grad():
        want = model(image, samples, mode='tensor')
    kit.look(model, lambda: got.extend(model(image, samples, mode='tensor')))
    for mine, theirs in zip(got, want, strict=True):
        assert all(map(torch.equal, mine, theirs))
    assert not any(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._forward_hooks_with_kwargs
        or m._forward_hooks_always_called
        or m._forward_pre_hooks_with_kwargs
        for m in model.modules()
    )


def test_predict_mode_finds_the_same(kit):
    model = kit.build('retinanet/retinanet_r18_fpn_1x_coco.py')
    image, samples = kit.inputs(128)
    graph = kit.look(model, lambda: model(image, samples, mode='predict'))
    assert kit.with_role(graph, 'prediction') == [
        'bbox_head.retina_cls',
        'bbox_head.retina_reg',
    ]


def test_survey_costs_little_more_than_a_forward(kit):
    model = kit.build('retinanet/retinanet_r50_fpn_1x_coco.py')
    image, samples = kit.inputs(512)

    def forward():
        with torch.no_grad():
            return model(image, samples, mode='tensor')

    def cost(function):
        start = time.process_time()
        function()
        return time.process_time() - start

    forward()
    plain, watched = (
        min(cost(f) for _ in range(2))
        for f in (forward, lambda: kit.look(model, forward))
    )
    assert watched < 1.5 * plain
