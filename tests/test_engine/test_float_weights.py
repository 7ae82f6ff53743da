# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Float weights into a detector."""

import pytest
import torch
from log_kit import logged
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch import nn

from mmdet_ptq.engine.float_weights import load_float_weights
from mmdet_ptq.errors import CheckpointError, NumericError


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


class Biased(nn.Module):
    """As an attention of windows."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        # not of PyTorch, which makes up what is missing
        self.sync = nn.Module()
        self.sync.register_buffer('num_batches_tracked', torch.tensor(0))
        self.register_buffer('relative_position_index', torch.arange(4))
        self.register_buffer('kept', torch.arange(4))


def test_buffers_that_may_be_missing():
    model = Biased()
    state = named('', model)
    for name in list(state):
        if name.endswith(('num_batches_tracked', 'position_index')):
            del state[name]
    assert len(state) == 5
    load_float_weights(model, state, 'a.pth')
    assert torch.equal(model.norm.bias, state['norm.bias'])
    assert torch.equal(model.relative_position_index, torch.arange(4))
    del state['kept']
    with pytest.raises(CheckpointError, match=r'missing \(1\): kept\n'):
        load_float_weights(model, state, 'a.pth')


def test_other_shapes_are_listed():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    state = named('', model)
    state['0.weight'] = torch.ones(2, 4)
    with pytest.raises(CheckpointError) as told:
        load_float_weights(model, state, 'a.pth')
    shapes = '(1): 0.weight: (2, 4) in the file, (2, 3) in the model\n'
    assert f'other shape {shapes}' in str(told.value)
    assert 'missing' not in str(told.value)


class Grows(nn.Module):
    """Takes a tensor of any shape."""

    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.empty(0))

    def _load_from_state_dict(self, state, prefix, *args):
        self.seen = torch.empty_like(state[prefix + 'seen'])
        super()._load_from_state_dict(state, prefix, *args)


def test_what_is_empty_may_take_any_shape():
    model = nn.Sequential(Grows(), nn.Linear(3, 2))
    state = {**named('', model), '0.seen': torch.arange(3.0)}
    load_float_weights(model, state, 'a.pth')
    assert model[0].seen.tolist() == [0, 1, 2]
    assert torch.equal(model[1].bias, state['1.bias'])


def test_what_a_file_has_beside_weights():
    model = nn.ModuleDict(dict(module=nn.Linear(3, 2)))
    state = named('', model)
    assert list(state) == ['module.weight', 'module.bias']
    model = nn.ModuleDict(dict(inner=model))
    state = {f'inner.{name}': tensor for name, tensor in state.items()}
    more = {'epoch': 3, 1: torch.ones(1), 'teacher.x': torch.ones(1)}
    with logged() as said:
        load_float_weights(model, {**state, **more}, 'a.pth')
    bias = model['inner']['module'].bias
    assert torch.equal(bias, state['inner.module.bias'])
    assert said.text == 'a.pth:\n  not used by this model (1): teacher.x\n'
    with pytest.raises(CheckpointError, match='is a list, not a dict'):
        load_float_weights(model, dict(state_dict=[]), 'a.pth')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_numbers_that_are_none(value):
    model = nn.BatchNorm2d(2)
    state = named('', model)
    state['running_var'][1] = value
    with pytest.raises(NumericError, match=r'a\.pth: running_var has NaN'):
        load_float_weights(model, state, 'a.pth')


@pytest.mark.parametrize(('layers', 'more'), [(4, ''), (5, ' and 2 more')])
def test_eight_names_are_listed(layers, more):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(layers)))
    with pytest.raises(CheckpointError) as told:
        load_float_weights(model, dict(x=torch.ones(1)), 'a.pth')
    listed = '; '.join(list(model.state_dict())[:8])
    assert f'missing ({2 * layers}): {listed}{more}\n' in str(told.value)


def test_a_prefix_of_some_is_none():
    model = nn.Sequential(nn.Linear(3, 2))
    state = {'a.0.weight': torch.ones(2, 3)}
    with pytest.raises(CheckpointError, match='Use the config that the'):
        load_float_weights(model, state, 'a.pth')


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
    model.loss_cls.scale = nn.Parameter(torch.ones(1))
    state['loss_cls.scale'] = torch.ones(1)
    needs = ('conv.weight', 'losses.0.running_mean', 'loss_cls.scale')
    for needed in needs:
        short = {n: t for n, t in state.items() if n != needed}
        with pytest.raises(CheckpointError, match=needed):
            load_float_weights(model, short, 'a.pth')
