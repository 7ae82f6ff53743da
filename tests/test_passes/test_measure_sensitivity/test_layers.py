# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The error that a layer makes, beside the one that it is given."""

import pytest
import torch
from reconstruct_model import Net
from sensitivity_kit import Attentive, at_the_end
from torch.nn import functional

from mmdet_ptq.calibration import observing
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.measure_sensitivity import layer_errors


def ratio(pairs):
    error = sum(float((a - b).double().square().sum()) for a, b in pairs)
    return error / sum(float(b.double().square().sum()) for _, b in pairs)


def test_of_a_head_by_hand():
    """The tower runs on two levels; its errors are those of both."""
    weight, bias = Net().tower.weight, Net().tower.bias

    def look(session):
        found = layer_errors(session)
        layer = session.layers['tower']
        inputs = [[], []]
        with torch.no_grad():
            for j in range(session.feed.total):
                for side in inputs:
                    with observing(
                        {'tower': layer},
                        lambda _, __, level, x, s=side: s.append((level, x)),
                    ):
                        if side is inputs[0]:
                            with float_mode(session.model):
                                session.model(**session.feed.batch(j))
                        else:
                            session.model(**session.feed.batch(j))
            quantizer = layer.act_quantizers['input']
            # no bias of a shared head is corrected

            def conv(x, w, b):
                return functional.conv2d(x, w, b, padding=1)

            exact = [conv(x, weight, bias) for _, x in inputs[0]]
            own = [
                conv(quantizer(x, level), layer.quantized_weight(), bias)
                for level, x in inputs[0]
            ]
            received = [conv(x, weight, bias) for _, x in inputs[1]]
            total = [
                conv(quantizer(x, level), layer.quantized_weight(), bias)
                for level, x in inputs[1]
            ]
        wanted = [
            ratio(list(zip(side, exact, strict=True)))
            for side in (own, received, total)
        ]
        return found, wanted

    found, wanted = at_the_end(look)
    assert list(found['tower'].values()) == pytest.approx(wanted, rel=1e-4)
    assert list(found['tower']) == ['own', 'received', 'total']
    assert all(w > 1e-4 for w in wanted)
    # nothing is before the first layer
    first = found['backbone.0']
    assert first['received'] == 0 and first['own'] == first['total'] > 0
    # predictions are float here, and no quantized layer
    assert 'out' not in found


def test_nothing_is_left_behind():
    def look(session):
        before = [
            (m.quantize_weight, m.quantize_act, len(m._forward_hooks))
            for m in session.layers.values()
        ]
        found = layer_errors(session)
        after = [
            (m.quantize_weight, m.quantize_act, len(m._forward_hooks))
            for m in session.layers.values()
        ]
        assert before == after
        return found

    rules = [dict(match='*', weight={}, act={})]
    found = at_the_end(look, net=Attentive, rules=rules)
    # products too
    assert len(found) == 8
    assert all(v > 0 for one in found.values() for v in [one['own']])
