# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Float checkpoints."""

import hashlib

import torch
from torch import nn

from mmdet_ptq.engine.checkpoint import load_float_weights, sha256


def test_sha256_of_several_blocks(tmp_path):
    data = bytes(range(256)) * 10000
    (tmp_path / 'file').write_bytes(data)
    assert sha256(tmp_path / 'file') == hashlib.sha256(data).hexdigest()


def test_weights_of_a_parallel_model():
    model = nn.Linear(3, 2)
    state = {
        f'module.{n}': torch.randn_like(t)
        for n, t in model.state_dict().items()
    }
    load_float_weights(model, dict(state_dict=state), 'a.pth')
    assert torch.equal(model.weight, state['module.weight'])
