# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is quantized while a unit is learned, and what is cached."""

from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from reconstruct_model import (
    BLOCK,
    LEARN,
    LOSSES,
    UNITS,
    Net,
    batches,
    equal,
    inside,
    reconstruct,
)
from torch.nn import functional

from mmdet_ptq.calibration.samples import collect, size_of
from mmdet_ptq.errors import NumericError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.reconstruct import visit

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


@pytest.mark.parametrize('inputs', ['quantized', 'float'])
@pytest.mark.parametrize('activations', [True, False])
def test_what_is_quantized(inputs, activations):
    """The units before if inputs are, this one, and none after it."""
    before, own = {'backbone.0'}, {f'{BLOCK}.conv1', f'{BLOCK}.conv2'}

    def look(trainer, *_):
        sample = trainer.samples[0]
        ((args, _),) = trainer.images.cache.fetch(sample.inputs)
        layers = trainer.session.layers
        weights = {n for n, m in layers.items() if m.quantize_weight}
        acts = {n for n, m in layers.items() if m.quantize_act}
        expected = own | (before if inputs == 'quantized' else set())
        assert weights == expected
        assert acts == (expected if activations else set())
        first = layers['backbone.0']
        x = torch.stack(batches()[0]['inputs'])
        with torch.no_grad(), float_mode(trainer.session.model):
            exact = first(x).relu()
            if activations:
                x = first.act_quantizers['input'](x)
            weight, bias = first.quantized_weight(), first.bias
            if first.bias_shift is not None:
                bias = bias + first.bias_shift
            quantized = functional.conv2d(x, weight, bias, padding=1).relu()
        wanted = quantized if inputs == 'quantized' else exact
        torch.testing.assert_close(args[0], wanted)
        assert not torch.allclose(quantized, exact)

    inside(look, input_distribution=inputs, activations=activations)


def test_cache_holds_one_unit():
    """What earlier units left there is gone."""

    def look(trainer, *_):
        cache = trainer.images.cache
        held = [s.entries() for s in trainer.samples.values()]
        expected = size_of([held, trainer.images.entries()])
        assert cache.in_memory + cache.on_disk == expected > 0

    inside(look, only=None, losses=LOSSES, drop_prob=0.5)


def test_float_model_is_left_as_it_was():
    model, session = reconstruct(iters=2, input_distribution='float')
    plain = Net().eval()
    for layer in session.layers.values():
        assert layer.quantize_weight and layer.quantize_act
    assert all(p.requires_grad for p in model.parameters())
    assert [m.inplace for m in model.modules() if hasattr(m, 'inplace')] == [
        m.inplace for m in plain.modules() if hasattr(m, 'inplace')
    ]


ORDERS = ('sequential', 'parallel')


@pytest.mark.parametrize(
    'args',
    [
        dict(learn=LEARN, drop_prob=0.5),
        dict(learn=[dict(type='LearnedWeights')], unit='layer'),
        dict(activations=False, batch_size=3),
    ],
    ids=str,
)
def test_parallel_is_sequential_to_the_bit(args, monkeypatch):
    args = dict(args, iters=10, input_distribution='float')
    (one, first), (two, second) = (
        reconstruct(order=order, **args) for order in ORDERS
    )
    assert equal(one, two)
    for ours, theirs in zip(first.records, second.records, strict=True):
        assert ours.curve == theirs.curve
        assert ours.after == theirs.after
    assert any(r.kept for r in first.records)

    # and each unit by itself: a float forward, and one of a prefix that
    # is not quantized
    alone = []

    def one_by_one(images, views, mixed):
        (view,) = views
        alone.append(view.name)

        @contextmanager
        def plain():
            with float_mode(images.model):
                yield

        return [collect(images, view, None, mixed, plain)]

    monkeypatch.setattr(visit, 'collect_float', one_by_one)
    assert equal(one, reconstruct(**args)[0])
    assert alone == [r.unit for r in first.records]


@pytest.mark.parametrize('order', ORDERS)
def test_number_of_forwards(order):
    count = [0]

    class Counted(Net):
        def forward(self, *args, **kwargs):
            count[0] += 1
            return super().forward(*args, **kwargs)

    found = []
    for iters in (0, 1):
        count[0] = 0
        args = dict(order=order, iters=iters, net=Counted)
        reconstruct(batches(5), input_distribution='float', **args)
        found.append(count[0])
    forwards = found[1] - found[0]
    assert forwards == (5 if order == 'parallel' else 5 * len(UNITS))


def test_cache_holds_the_units_to_come():
    """In memory up to the bound, and what is done is given back."""
    held, sizes, constant = [], [], []

    def look(trainer, _, __, k):
        cache = trainer.images.cache
        held.append(cache.in_memory + cache.on_disk)
        assert cache.in_memory <= cache.limit
        assert cache.on_disk or k
        mine = trainer.samples.values()
        sizes.append(size_of([s.entries() for s in mine]))
        constant[:] = [size_of(trainer.images.entries())]

    small = dict(calibration=dict(cache='200KiB'))
    args = dict(order='parallel', input_distribution='float', iters=5)
    inside(look, only=None, **args, **small)
    freed = [a - b for a, b in pairwise(held)]
    assert len(held) == len(UNITS) and freed == sizes[:-1]
    assert held[-1] == sizes[-1] + constant[0]
    assert held[0] > 2 * 200 * 1024
    assert equal(reconstruct(**args)[0], reconstruct(**args, **small)[0])


def test_float_overflow_names_the_unit():
    class Overflowing(Net):
        def __init__(self):
            super().__init__()
            self.tower.weight.data[0] = 1e38

    init = [
        dict(type='FoldBatchNorm'),
        dict(type='Observe'),
        dict(type='SetRanges'),
    ]
    with pytest.raises(NumericError, match=r'tower.* image 0'):
        reconstruct(
            iters=1,
            init=init,
            net=Overflowing,
            order='parallel',
            input_distribution='float',
        )


def test_float_targets_of_no_loss_cost_nothing():
    """Without a loss on the outputs nothing is run for targets."""

    def look(trainer, *_):
        return len(trainer.images.targets(0))

    for kind, count in (('L2Loss', 0), ('DetectionLoss', 1)):
        args = dict(losses=[dict(type=kind)], iters=1, data=batches(3))
        assert inside(look, **args) == count
