# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Checkpoints of a training, reduced to weights that load anywhere."""

import sys
from pathlib import PurePosixPath

import pytest
import torch

from tools.data import strip_checkpoint as tool

WEIGHT = torch.tensor([[1.0, 1 / 3], [-2.0, 60000.0]], dtype=torch.float64)


@pytest.fixture
def trained(tmp_path):
    """A file with an optimizer, a counter and an object."""
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        dict(
            state_dict={
                'backbone.weight': WEIGHT,
                'backbone.num_batches_tracked': torch.tensor(7),
                # a view: the whole storage must not go along
                'head.weight': torch.zeros(1000, 3)[:1],
            },
            optimizer=dict(state=[torch.ones(9)]),
            meta=dict(
                dataset_meta=dict(
                    classes=('dark', 'light'), root=PurePosixPath('/data')
                ),
                cfg=PurePosixPath('not kept'),
            ),
        ),
        path,
    )
    return path


@pytest.mark.parametrize('half', [False, True])
def test_only_weights_are_left(trained, tmp_path, half):
    out = tmp_path / 'new' / 'weights.pth'
    assert tool.strip_checkpoint(trained, out, half, trust=True) == 3
    found = torch.load(out, weights_only=True)
    assert set(found) == {'state_dict', 'meta'}
    assert found['meta'] == dict(
        dataset_meta=dict(classes=['dark', 'light'], root='/data')
    )
    state = found['state_dict']
    dtype = torch.float16 if half else torch.float32
    assert torch.equal(state['backbone.weight'], WEIGHT.to(dtype))
    assert state['backbone.weight'].dtype == dtype
    assert state['backbone.num_batches_tracked'].dtype == torch.int64
    assert state['head.weight'].untyped_storage().nbytes() == (
        3 * dtype.itemsize
    )


def test_objects_need_trust(trained, tmp_path):
    with pytest.raises(Exception, match='weights_only'):
        tool.strip_checkpoint(trained, tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


def test_some_prefixes(trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out.pth'
    words = [str(trained), str(out), '--half', '--trust-checkpoint']
    monkeypatch.setattr(
        sys, 'argv', ['strip', *words, '--keep-prefix', 'head.', 'neck.']
    )
    tool.main()
    assert '1 weights' in capsys.readouterr().out
    state = torch.load(out, weights_only=True)['state_dict']
    assert list(state) == ['head.weight']
    assert state['head.weight'].dtype == torch.float16
    with pytest.raises(ValueError, match='no weights'):
        tool.strip_checkpoint(trained, out, False, ['neck.'], True)


def test_what_overflows_is_refused(tmp_path):
    """A bare state dict, fine as float32 and not as float16."""
    path, out = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(dict(w=torch.tensor([7e4]), v=torch.ones(1)), path)
    assert tool.strip_checkpoint(path, out) == 2
    out.unlink()
    with pytest.raises(ValueError, match=r"float16.*\['w'\]"):
        tool.strip_checkpoint(path, out, half=True)
    assert not out.exists()
