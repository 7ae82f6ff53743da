# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Float weights into a detector."""

import pytest
import torch
from log_kit import logged
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch import nn

from mmdet_ptq.engine.float_weights import load_float_weights
from mmdet_ptq.errors import CheckpointError


def named(prefix, model):
    return {f'{prefix}{n}': t + 1 for n, t in model.state_dict().items()}


def test_weights_of_a_parallel_model():
    model = nn.Linear(3, 2)
    state = named('module.', model)
    load_float_weights(model, dict(state_dict=state), 'a.pth')
    assert torch.equal(model.weight, state['module.weight'])


@pytest.mark.parametrize('prefix', ['teacher.', 'detector.', 'ema_', 'a.b.'])
def test_a_prefix_is_told(prefix):
    model = nn.Sequential(nn.Linear(3, 2))
    state = named(prefix, model)
    with pytest.raises(CheckpointError) as told:
        load_float_weights(model, dict(state_dict=state), 'a.pth')
    assert f'begin with {prefix!r}: ' in str(told.value)
    assert f'p = {prefix!r}; torch.save(' in str(told.value)


def test_the_advice_on_a_prefix_works(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(3, 2))
    state = {**named('teacher.', model), **named('student.', model)}
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=state), 'FILE')
    with pytest.raises(CheckpointError) as told:
        load_float_weights(model, dict(state_dict=state), 'a.pth')
    assert "begin with 'teacher.' and 'student.': " in str(told.value)
    code = str(told.value).split('e.g. ')[1]
    exec(code, dict(torch=torch, FILE='FILE', NEW='NEW'))
    load_float_weights(model, torch.load('NEW'), 'NEW')
    assert torch.equal(model[0].weight, state['teacher.0.weight'])


def test_another_architecture_is_no_prefix():
    with pytest.raises(CheckpointError, match='Use the config that the'):
        load_float_weights(nn.Linear(3, 2), dict(x=torch.ones(1)), 'a.pth')


def head(kind):
    register_all_modules()
    loss = dict(type=kind, momentum=0.5)
    found = nn.Module()
    found.conv = nn.Conv2d(2, 2, 1)
    found.loss_cls = MODELS.build(loss)
    found.losses = nn.ModuleList([nn.BatchNorm2d(2)])
    return found


@pytest.mark.parametrize('kind', ['GHMC', 'GHMR'])
def test_buffers_of_a_loss_may_be_missing(kind):
    model = head(kind)
    state = named('', model)
    buffers = [n for n in state if n.startswith('loss_cls.')]
    assert buffers == ['loss_cls.edges', 'loss_cls.acc_sum']
    edges = model.loss_cls.edges.clone()
    for name in buffers:
        del state[name]
    with logged() as said:
        load_float_weights(model, state, 'a.pth')
    assert torch.equal(model.conv.weight, state['conv.weight'])
    assert torch.equal(model.loss_cls.edges, edges)
    assert 'of losses, not used in a prediction (2)' in said.text
    for needed in ('conv.weight', 'losses.0.running_mean'):
        short = {n: t for n, t in state.items() if n != needed}
        with pytest.raises(CheckpointError, match=needed):
            load_float_weights(model, short, 'a.pth')
