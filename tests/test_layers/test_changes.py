# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Who changes a twin."""

import ast
from pathlib import Path

import mmdet_ptq

ROOT = Path(mmdet_ptq.__file__).parent
STATE = {
    'act_quantizers',
    'baked',
    'bias_shift',
    'drop_prob',
    'generator',
    'levels',
    'quantize_act',
    'quantize_weight',
    'rounded',
    'weight_quantizer',
    'weight_source',
}


def changed(source):
    """Names of attributes, not of ``self``, that a source assigns."""
    for node in ast.walk(ast.parse(source)):
        targets = getattr(node, 'targets', [getattr(node, 'target', None)])
        for target in ast.walk(ast.Tuple(elts=[t for t in targets if t])):
            if (
                isinstance(target, ast.Attribute)
                and not isinstance(target.ctx, ast.Load)
                and getattr(target.value, 'id', '') != 'self'
            ):
                yield target.attr
            elif isinstance(target, ast.Subscript):
                yield getattr(target.value, 'attr', '')


def test_a_change_is_found():
    source = (
        'a.rounded = 1\nb.c.baked, d = 2, 3\nself.levels = 4\n'
        'e.act_quantizers["x"] = f.drop_prob\ndel g.act_quantizers[h.rounded]'
    )
    assert sorted(changed(source)) == [
        'act_quantizers',
        'act_quantizers',
        'baked',
        'rounded',
    ]


def test_a_twin_changes_through_its_methods():
    wrong = [
        f'{path.relative_to(ROOT)}: {name}'
        for path in ROOT.rglob('*.py')
        if path.parent.name != 'layers'
        for name in changed(path.read_text())
        if name in STATE
    ]
    assert not wrong
