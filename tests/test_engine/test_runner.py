# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the runner changes holds for a test alone."""

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from outcomes import measured
from torch import nn

from mmdet_ptq.engine import CalibrationHook, ProgressHook, PTQRunner
from mmdet_ptq.errors import CheckpointError
from mmdet_ptq.layers import quant_layers
from mmdet_ptq.passes import SetRanges
from mmdet_ptq.registry import PASSES


@pytest.fixture
def build(tiny, tmp_path):
    """Builds a runner for the tiny RetinaNet, ours or MMEngine's."""

    def make(kind='PTQRunner', **changes):
        register_all_modules()
        cfg = Config.fromfile(tiny.config['retinanet'])
        validates = dict(
            val_cfg=dict(type='ValLoop'),
            val_dataloader=cfg.test_dataloader,
            val_evaluator=cfg.test_evaluator,
        )
        quant = dict(
            recipe='minmax', bits='w4a4', calibration=dict(num_samples=2)
        )
        settings = dict(
            work_dir=str(tmp_path / kind),
            custom_hooks=[dict(type='EMAHook')],
            load_from=str(tiny.checkpoint['retinanet']),
            randomness=dict(seed=0),
            quant_cfg=quant,
        )
        for key, value in {**settings, **validates, **changes}.items():
            cfg[key] = value
        return (Runner if kind == 'Runner' else PTQRunner).from_cfg(cfg)

    return make


def test_training_is_that_of_mmengine(build, tmp_path):
    changes = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)
    slow = dict(type='SGD', lr=1e-7)  # weights are random, losses are large
    changes['optim_wrapper'] = dict(type='OptimWrapper', optimizer=slow)
    found = []
    for kind in ('Runner', 'PTQRunner'):
        runner = build(kind, **changes)
        runner.train()
        path = tmp_path / kind / 'epoch_1.pth'
        found.append(torch.load(path, weights_only=False))
        assert (tmp_path / kind / 'retinanet.py').is_file()
    for part in ('state_dict', 'ema_state_dict'):
        theirs, ours = (one[part] for one in found)
        assert list(theirs) == list(ours)
        for name, tensor in theirs.items():
            assert torch.isfinite(tensor).all()
            assert torch.equal(tensor, ours[name]), name


class Counted(SetRanges):
    """Counts how often it is built, and runs."""

    built, ran = 0, 0

    def __init__(self, **settings):
        super().__init__(**settings)
        Counted.built += 1

    def run(self, session):
        """Counts."""
        Counted.ran += 1
        super().run(session)


def test_each_pass_is_built_once(build):
    """Also where it is tried on a copy of the detector before a float test."""
    PASSES.register_module(module=Counted)
    minmax = dict(type='MinMaxObserver')
    quant = dict(
        bits='w8a8',
        rules=[dict(match='*', weight=dict(granularity='channel'), act={})],
        passes=[
            dict(type='Observe', observer=minmax),
            dict(type='Counted', weight_observer=minmax),
        ],
        calibration=dict(num_samples=2),
    )
    try:
        runner = build(quant_cfg=quant, ptq_cfg=dict(float_eval=True))
        # as a hook leaves it: PyTorch copies no tensor with a history
        runner.model.computed = 2 * runner.model.backbone.conv1.weight
        runner.test()
    finally:
        PASSES.module_dict.pop('Counted')
    assert (Counted.built, Counted.ran) == (1, 1)


def test_validation_is_that_of_mmengine(build):
    theirs, ours = build('Runner').val(), build().val()
    assert measured(theirs) == measured(ours) != {}


def test_hooks_of_a_test_go_after_it(build):
    runner = build()
    before = list(runner.hooks)
    seen = []
    step = runner.model.test_step

    def looking(data):
        seen.append({type(hook) for hook in runner.hooks})
        return step(data)

    runner.model.test_step = looking
    runner.test()
    assert all({CalibrationHook, ProgressHook} <= kinds for kinds in seen)
    assert not any(EMAHook in kinds for kinds in seen)
    assert runner.hooks == before
    assert any(isinstance(hook, EMAHook) for hook in before)


class Wrapper(nn.Module):
    """Stands for the one of several GPUs."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def val_step(self, data):
        """Counts."""
        self.module.steps = getattr(self.module, 'steps', 0) + 1
        return self.module.val_step(data)


def test_models_are_wrapped_for_several_gpus(build, monkeypatch):
    """In a group of one process, for validation; a test has no wrapper."""
    MODEL_WRAPPERS.register_module(module=Wrapper)
    address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
    for name, value in dict(
        address, RANK='0', WORLD_SIZE='1', LOCAL_RANK='0'
    ).items():
        monkeypatch.setenv(name, value)
    try:
        runner = build(
            launcher='pytorch',
            device='cpu',
            model_wrapper_cfg=dict(type='Wrapper'),
        )
        runner.val()
        assert type(runner.model) is Wrapper
        assert runner.model.module.steps == 4
        runner.test()
        assert type(runner.model) is not Wrapper
        assert quant_layers(runner.model)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        MODEL_WRAPPERS.module_dict.pop('Wrapper')


def test_a_float_checkpoint_for_what_runs_no_test(build, tiny, ptq):
    """And a quant_cfg in the place of the config's."""
    runner = build()
    assert runner.load_float() == tiny.checkpoint['retinanet']
    state = torch.load(tiny.checkpoint['retinanet'], weights_only=False)
    own = runner.detector.state_dict()
    for name, value in state['state_dict'].items():
        assert torch.equal(own[name], value), name
    runner.choose(dict(recipe='minmax', bits='w5a5'))
    assert runner.quant_config.title == 'minmax w5a5'
    assert runner.cfg.quant_cfg['bits'] == 'w5a5'
    words = ('--recipe', 'minmax', '--no-report', '--no-float-eval')
    artefact = ptq(*words, '--calib-num', '1').artefact
    again = build(load_from=str(artefact))
    with pytest.raises(CheckpointError, match='is quantized already; give'):
        again.load_float()
