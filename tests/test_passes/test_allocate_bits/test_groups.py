# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Groups of channels are observed; whole tensors are not observed again."""

import torch
from allocate_kit import IMAGES, observed

from mmdet_ptq.passes import AllocateBits
from mmdet_ptq.passes.allocate_bits.groups import export, observe_groups
from mmdet_ptq.passes.allocate_bits.operands import Wanted

BASE = dict(weight=4, input=4)


def run(channels, scope=('tower',)):
    session, _ = observed()
    calls = []
    session.model.register_forward_hook(lambda *_: calls.append(1))
    floors = dict(weight=3, input=3)
    operands = Wanted(scope, BASE, floors, 8, channels).find(session)
    before = session.stats.of(('tower', 'input'))
    # it asks the session which passes there are
    asked = next(
        p for p in session.config.built_passes if isinstance(p, AllocateBits)
    )
    observe_groups(session, operands, asked)
    return session, operands, calls, before


def test_groups_have_rows_of_their_own():
    session, operands, calls, before = run(4)
    assert len(calls) == IMAGES
    after = session.stats.of(('tower', 'input'))
    quantizer = session.layers['tower'].act_quantizers['input']
    assert session.stats.of_rows(('tower', 'input'), quantizer) is after
    assert after.low.shape == (1, 2) and before.low.shape == (1, 1)
    assert torch.equal(after.low.amin(1), before.low[:, 0])
    assert torch.equal(after.high.amax(1), before.high[:, 0])
    session.state['measured'] = {}
    assert set(export(session, operands)) == {'measured', 'stats'}


def test_whole_tensors_are_not_observed_again():
    session, operands, calls, before = run(None)
    assert not calls
    assert session.stats.of(('tower', 'input')) is before
    session.state['measured'] = {}
    assert set(export(session, operands)) == {'measured'}
