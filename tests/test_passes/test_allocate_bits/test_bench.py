# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The detector with widths for a while, and gradients at its tensors."""

import pytest
import torch
from allocate_kit import LAYERS, observed
from reconstruct_model import Net, batches

from mmdet_ptq.calibration import frozen
from mmdet_ptq.layers import quantizing
from mmdet_ptq.passes import SetRanges
from mmdet_ptq.passes.allocate_bits.bench import Bench
from mmdet_ptq.passes.allocate_bits.operands import Wanted
from mmdet_ptq.passes.allocate_bits.trial_quantizers import (
    make_trial_quantizers,
)

BASE = dict(weight=4, input=4)


@pytest.fixture(scope='module')
def there():
    session, _ = observed()
    wanted = Wanted(('*',), BASE, dict(weight=3, input=3), 8, 4)
    whole = Wanted(('*',), BASE, dict(weight=3, input=3), 8, None)
    operands = whole.find(session)
    # weights in groups, inputs whole: as they were observed
    groups = {o.name: o for o in wanted.find(session) if o.kind == 'weight'}
    operands = [groups.get(o.name, o) for o in operands]
    return session, Bench(session, make_trial_quantizers(session, operands))


def run(session):
    return session.model(**batches(1)[0])


def flat(bench, bits):
    return [[bits] * slot.trial.units for slot in bench.slots]


@torch.no_grad()
def test_widths_come_and_go(there):
    session, bench = there
    layers = session.layers
    before = {n: dict(m.act_quantizers.items()) for n, m in layers.items()}
    exact = run_float(session)
    with bench.mounted():
        bench.reset()
        assert all(map(torch.equal, run(session), exact))
        bench.set(flat(bench, 4))
        ours = run(session)
    for name, layer in layers.items():
        found = dict(layer.act_quantizers.items())
        assert list(found) == list(before[name])
        assert all(found[p] is before[name][p] for p in found)
    SetRanges().run(session)
    assert all(map(torch.equal, run(session), ours))
    assert not torch.equal(ours[0], exact[0])


def run_float(session):
    with quantizing(session.model, (), ()):
        return run(session)


def test_gradients_are_those_of_single_readers(there):
    """Of a weight that two levels share, and of one reader of a sum."""
    session, bench = there
    torch.manual_seed(0)
    net = Net().eval()
    x = batches(1)[0]
    v = [torch.randn_like(t) for t in net(**x)]
    with frozen(session.model), bench.mounted(), torch.enable_grad():
        bench.reset()
        found = run(session)
        sum((a * b).sum() for a, b in zip(found, v, strict=True)).backward()
        changes = [slot.collect() for slot in bench.slots]
    trials = [slot.trial for slot in bench.slots]
    at = {t.operand.name: i for i, t in enumerate(trials)}

    # the same by autograd on a float network
    def total(y):
        outputs = net(**y)
        return sum((a * b).sum() for a, b in zip(outputs, v, strict=True))

    total(x).backward()
    for name in ('tower', 'backbone.2.conv1'):
        i, weight = at[f'{name}.weight'], net.get_submodule(name).weight
        for k, bits in enumerate(trials[i].operand.widths):
            with torch.no_grad():
                d = trials[i].quantizers[bits](weight) - weight
                want = (d * weight.grad).flatten(1).sum(1)
            want = want.view(2, 4).sum(1).double()
            assert torch.allclose(changes[i][:, k], want, rtol=1e-3)
    # the skip reads the input of the block too, and is not quantized
    seen = {}

    def entering(module, args):
        if 'y' not in seen:
            seen['x'] = args[0].detach()
            seen['y'] = args[0].detach().clone().requires_grad_()
            return (seen['y'],)

    net.get_submodule('backbone.2.conv1').register_forward_pre_hook(entering)
    total(x).backward()
    i = at['backbone.2.conv1.input']
    with torch.no_grad():
        for k, bits in enumerate(trials[i].operand.widths):
            d = trials[i].quantizers[bits](seen['x']) - seen['x']
            want = float((d * seen['y'].grad).sum())
            assert float(changes[i][0, k]) == pytest.approx(want, rel=1e-3)
    assert all(slot.heard for slot in bench.slots)
    assert len(trials) == 2 * len(LAYERS)
