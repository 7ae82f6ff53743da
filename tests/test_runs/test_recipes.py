# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every recipe, run as a user runs it."""

import copy

import pytest
import torch
from mmengine.config import Config
from tiny_kit import predictions, tiny_detr, tiny_swin
from torch import nn

from mmdet_ptq import (
    PTQRunner,
    load_quantized,
    quantize_detector,
    save_quantized,
)
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg import load_recipe, recipe_names
from mmdet_ptq.testing import noise_batches

#: as short as it gets
SHORT = dict(
    Reconstruct=dict(iters=2, batch_size=1),
    LAPQ=dict(exponents=[2, 3, 4], powell_iters=0, images=1),
    ChooseExponents=dict(exponents=[2, 3], images=1),
    SearchScales=dict(rows=64, rounds=1, count=16, steps=1),
    AllocateGroups=dict(candidates=[2, 8], images=1),
)
SHORT_CORRECTION = dict(iters=1)


def short_args(name):
    """``pass_args`` for the passes that the recipe has."""
    found = {}
    for one in load_recipe(name)['passes']:
        args = dict(SHORT.get(one['type'], {}))
        # what does not act is refused
        if one.get('candidates') == 'ranges':
            del args['steps']
        if one.get('objective') == 'block':
            del args['rows']
        if 'distribution_correction' in one:
            args['distribution_correction'] = SHORT_CORRECTION
        if args:
            found[one['type']] = args
    return found


def shortened(name):
    """The same as options of a command."""
    words = []
    for kind, args in short_args(name).items():
        for key, value in args.items():
            where = f'quant_cfg.pass_args.{kind}.{key}'
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
    passes = {p['type'] for p in load_recipe(name)['passes']}
    learns = 'Reconstruct' in passes
    assert bool(run.result['reconstruction']) == learns
    assert ('units kept' in run.out) == learns
    rounded = 'CompensateRounding' in passes
    assert bool(run.result['rounding']) == rounded
    assert ('compensated rounding' in run.out) == rounded
    ranges = run.result['ranges']
    assert bool(ranges) == (name in ('lapq', 'det_ptq'))
    assert ('chosen ranges' in run.out) == bool(ranges)
    for one in ranges:
        assert f'{one["exponent"]:.3g}' in run.out


@pytest.fixture(scope='module')
def detectors(tmp_path_factory):
    """Each is made once, and copied."""
    folder = tmp_path_factory.mktemp('detectors')
    return dict(detr=tiny_detr(folder), swin=tiny_swin(folder))


#: those that do something else where there are windows or GELUs
OF_SWIN = ('adalog', 'apq_vit', 'fq_vit', 'igq_allocate', 'ptq4vit')


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind, name',
    [
        *(('detr', name) for name in recipe_names()),
        *(('swin', name) for name in OF_SWIN),
    ],
)
@torch.no_grad()
def test_every_recipe_reloads(detectors, tmp_path, kind, name):
    """Loaded, the artefact predicts the same to the bit, and not as float."""
    float_model, data = detectors[kind], noise_batches(2, (64, 96))
    model = copy.deepcopy(float_model)
    cfg = dict(recipe=name, bits='w4a4', pass_args=short_args(name))
    with torch.enable_grad():
        session = quantize_detector(model, data, cfg)
    save_quantized(session, tmp_path / 'quantized.pth')
    loaded = load_quantized(
        copy.deepcopy(float_model), tmp_path / 'quantized.pth'
    )
    wanted = predictions(model, data)
    assert len(wanted[0])
    assert all(map(torch.equal, predictions(loaded, data), wanted))
    exact = predictions(copy.deepcopy(float_model), data)
    assert not all(map(torch.equal, exact, wanted))


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
