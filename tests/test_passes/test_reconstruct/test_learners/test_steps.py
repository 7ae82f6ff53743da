# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Steps that are learned."""

import pytest
import torch
from torch import nn

from mmdet_ptq.passes.reconstruct import LearnedSteps
from mmdet_ptq.quantizers import UniformQuantizer


def test_learned_steps():
    q = UniformQuantizer(4)
    unset = UniformQuantizer(4)
    q.set_range(torch.tensor([-1.0]), torch.tensor([2.0]))
    learner = LearnedSteps()
    (group,) = learner.start({}, [q, unset], 500)
    assert group['params'] == [q.scale] and group['cosine']
    assert group['lr'] == pytest.approx(2e-4 * 2 * 0.2)
    q.scale.data.mul_(2)
    learner.harden()
    assert not isinstance(q.scale, nn.Parameter)
    assert float(q.scale) == pytest.approx(0.4)
    (group,) = LearnedSteps(lr=0.1, cosine=False).start({}, [q], 500)
    assert group['lr'] == 0.1 and not group['cosine']
