# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A quantized file is never loaded as random weights."""

import subprocess
import sys

import pytest
import torch
from mmdet.apis import init_detector
from mmengine.runner import load_checkpoint

from mmdet_ptq import quantize_detector, save_quantized
from mmdet_ptq.errors import CheckpointError
from mmdet_ptq.testing import noise_batches, random_detector


@pytest.fixture(scope='module')
def quantized(tiny, tmp_path_factory):
    model = random_detector(tiny.config['retinanet'])
    cfg = dict(recipe='minmax', bits='w8a8')
    session = quantize_detector(model, noise_batches(1, (64, 64)), cfg)
    path = tmp_path_factory.mktemp('guard') / 'quantized.pth'
    save_quantized(session, path)
    return path


@pytest.mark.parametrize('model', ['retinanet', 'mask_rcnn'])
def test_a_float_model_is_stopped(tiny, quantized, model):
    says = r'quantized detector, which a float model cannot load.*work dir'
    model = random_detector(tiny.config[model])
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(model, str(quantized))
    saved = torch.load(quantized, weights_only=True)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=says):
            model.load_state_dict(saved, strict=strict)
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_init_detector_on_a_float_config(tiny, quantized):
    with pytest.raises(CheckpointError, match='a float model cannot load'):
        init_detector(
            str(tiny.config['retinanet']), str(quantized), device='cpu'
        )


def test_without_the_package(quantized, environment):
    """PyTorch names what is needed."""
    code = 'import sys, torch\ntorch.load(sys.argv[1])'
    run = subprocess.run(
        [sys.executable, '-c', code, str(quantized)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode
    assert 'mmdet_ptq.artefact.guard.NeedsConfigOfWorkDir' in run.stderr
