# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every recipe, run as a user runs it."""

import pytest
from mmengine.config import Config
from torch import nn

from mmdet_ptq import PTQRunner, quantize_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg import load_recipe, recipe_names

#: as short as it gets
SHORT = dict(
    Reconstruct=dict(iters=2, batch_size=1),
    LAPQ=dict(exponents=[2, 3, 4], powell_iters=0, images=1),
    ChooseExponents=dict(exponents=[2, 3], images=1),
    SearchScales=dict(rows=64, rounds=1, count=16, steps=1),
)
SHORT_CORRECTION = dict(iters=1)


def shortened(name):
    """Options for the passes that the recipe has."""
    passes = load_recipe(name)['passes']
    words = []
    for one in passes:
        args = dict(SHORT.get(one['type'], {}))
        if 'distribution_correction' in one:
            args['distribution_correction'] = SHORT_CORRECTION
        for key, value in args.items():
            where = f'quant_cfg.pass_args.{one["type"]}.{key}'
            if isinstance(value, dict):
                (inner, value), *_ = value.items()
                where = f'{where}.{inner}'
            text = str(value).replace(' ', '')
            words.append(f'{where}={text}')
    return list(dict.fromkeys(words))


@pytest.mark.parametrize('name', recipe_names())
def test_every_recipe_by_the_command(ptq, name):
    """To the last line: artefact, metrics, and a table of what was done."""
    words = shortened(name)
    words = ['--cfg-options', *words] if words else []
    run = ptq(
        *('--recipe', name, '--bits', 'w4a4', '--calib-num', 2),
        *('--no-float-eval', *words),
    )
    assert run.code == 0, run.err
    assert run.artefact.is_file() and run.result['quantized']
    assert run.result['recipe'] == name
    learns = any(
        p['type'] == 'Reconstruct' for p in load_recipe(name)['passes']
    )
    assert bool(run.result['reconstruction']) == learns
    assert ('units kept' in run.out) == learns
    rounded = name.startswith('gptq')
    assert bool(run.result['rounding']) == rounded
    assert ('compensated rounding' in run.out) == rounded
    ranges = run.result['ranges']
    assert bool(ranges) == (name in ('lapq', 'det_ptq'))
    assert ('chosen ranges' in run.out) == bool(ranges)
    for one in ranges:
        assert f'{one["exponent"]:.3g}' in run.out


def test_iters_of_the_command(ptq):
    run = ptq(
        *('--recipe', 'adaround', '--bits', 'w4a4', '--calib-num', 2),
        *('--no-float-eval', '--iters', 0),
    )
    assert run.code == 0 and run.result['reconstruction'] == []
    assert run.result['quant_cfg']['passes'][-1]['iters'] == 0
    run = ptq('--recipe', 'uniform', '--iters', 5)
    assert run.code == 1 and '--iters 5: no pass' in run.err


def test_a_recipe_is_no_quant_cfg(tmp_path):
    """A string is told what to write, by the doors without a command too."""
    says = r"got 'minmax'; write e\.g\. dict\(recipe='minmax', bits='w8a8'\)"
    cfg = Config(dict(quant_cfg='minmax'))
    with pytest.raises(QuantConfigError, match=says):
        PTQRunner(cfg=cfg, work_dir=str(tmp_path))
    with pytest.raises(QuantConfigError, match=says):
        quantize_detector(nn.Conv2d(1, 1, 1), [], 'minmax')


def test_equalized_channels_by_the_command(ptq):
    run = ptq(
        *('--recipe', 'minmax', '--bits', 'w4a4', '--calib-num', 2),
        *('--no-float-eval', '--cfg-options', 'quant_cfg.equalize=True'),
    )
    assert run.code == 0, run.err
    assert run.artefact.is_file() and run.result['quantized']
    found = run.result['equalization']
    assert any(r['by'] for r in found)
    assert all(r['after'] <= r['before'] for r in found)
    assert 'equalized channels' in run.out
    assert any('not equalized, add reads it' in n for n in run.result['notes'])
    kinds = [p['type'] for p in run.result['quant_cfg']['passes']]
    assert kinds[:2] == ['FoldBatchNorm', 'EqualizeChannels']
