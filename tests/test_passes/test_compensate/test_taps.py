# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rows of two forwards belong together."""

import torch
from reconstruct_model import RULES, Net, batches

from mmdet_ptq import quantize_detector
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.compensate.taps import tapping

PASSES = [dict(type='Observe'), dict(type='SetRanges')]


def test_the_same_positions_of_every_forward():
    model, data = Net().eval(), batches(3)
    session = quantize_detector(
        model, data, dict(bits='w4a8', rules=RULES, passes=PASSES)
    )
    layers = {n: session.layers[n] for n in ('backbone.0', 'tower', 'neck.1')}

    def rows(image, quantized, count=20):
        with tapping(session, layers, image, count, quantized) as found:
            if quantized:
                model(**data[0])
            else:
                with float_mode(model, weight=False):
                    model(**data[0])
        return found

    exact, ours = rows(5, False), rows(5, True)
    assert list(exact) == list(ours)
    assert len(exact['tower']) == 2  # pyramid levels
    assert len(exact['backbone.0']) == 1
    for name in layers:
        for a, b in zip(exact[name], ours[name], strict=True):
            assert a.shape == b.shape and a.shape[1] == 20
            assert not torch.equal(a, b)
            # 8 bits are near, other positions are not
            assert (a - b).norm() < 0.2 * a.norm()
    again, other = rows(5, False), rows(6, False)
    for name in layers:
        assert all(map(torch.equal, exact[name], again[name]))
        assert not any(map(torch.equal, exact[name], other[name]))
    few = rows(5, False, 3)
    assert few['tower'][0].shape[1] == 3
