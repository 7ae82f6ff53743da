# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Passes in an order that works, found before anything runs."""

import pytest
import torch
from two_levels import PASSES, RULES, Tiny, batches

from mmdet_ptq.apis import quantize_detector
from mmdet_ptq.errors import CalibrationError, PTQError, QuantConfigError
from mmdet_ptq.passes import (
    BasePass,
    CorrectBias,
    FoldBatchNorm,
    Observe,
    SetRanges,
    checked,
)
from mmdet_ptq.quantizers import BaseQuantizer, UniformEncoding
from mmdet_ptq.registry import PASSES as REGISTRY
from mmdet_ptq.registry import QUANTIZERS
from mmdet_ptq.structures import QuantSpec


def test_order_that_works():
    passes = [FoldBatchNorm(), Observe(), SetRanges(), CorrectBias()]
    assert checked(passes) == passes


LEARNING = dict(type='Reconstruct', learn=[dict(type='AdaRound')])


@pytest.mark.parametrize(
    'passes, match',
    [
        ([dict(type='SetRanges')], 'SetRanges needs what Observe gives'),
        ([PASSES[1], dict(type='CorrectBias')], 'needs what SetRanges'),
        ([PASSES[1], dict(type='LAPQ')], 'LAPQ needs what SetRanges gives'),
        ([PASSES[0], PASSES[1]], 'none of them sets the ranges'),
        (
            [*PASSES, dict(type='CorrectBias'), PASSES[2]],
            'SetRanges comes after CorrectBias',
        ),
        ([LEARNING], 'Reconstruct needs what SetRanges gives'),
        ([*PASSES[1:], PASSES[0]], 'FoldBatchNorm comes after Observe'),
        ([*PASSES, LEARNING, PASSES[2]], 'SetRanges comes after Reconstruct'),
        ([*PASSES, LEARNING, PASSES[1]], 'Observe comes after Reconstruct'),
        (
            [*PASSES, LEARNING, dict(type='CorrectBias')],
            'CorrectBias comes after Reconstruct',
        ),
    ],
)
def test_order_that_does_not_work(passes, match):
    """Found before the model is touched."""
    model = Tiny().eval()
    before = list(model.named_modules())
    cfg = dict(bits='w8a8', rules=RULES, passes=passes)
    with pytest.raises(QuantConfigError, match=match):
        quantize_detector(model, batches(), cfg)
    assert list(model.named_modules()) == before


@pytest.fixture
def registered():
    """Registers a class for the time of a test."""
    names = []

    def register(cls):
        REGISTRY.register_module(module=cls)
        names.append(cls.__name__)

    yield register
    for name in names:
        REGISTRY.module_dict.pop(name)


def test_no_pass(registered):
    class Stray:
        def run(self, session):
            raise AssertionError('never runs')

    registered(Stray)
    passes = [*PASSES, dict(type='Stray')]
    with pytest.raises(QuantConfigError, match='Stray is registered'):
        quantize_detector(
            Tiny().eval(),
            batches(),
            dict(bits='w8a8', rules=RULES, passes=passes),
        )


def test_statistics_are_there_as_long_as_they_are_needed(registered):
    """Means only if a pass asks for them; all gone after the last reader."""
    seen = {}

    class Reader(BasePass):
        needs = frozenset({'observers'})

        def run(self, session):
            seen['reader'] = session.stats.means, len(session.stats.observers)

    class After(BasePass):
        def run(self, session):
            seen['after'] = len(session.stats.observers)

    registered(Reader)
    registered(After)
    for extra, means in (([], False), ([dict(type='CorrectBias')], True)):
        passes = [*PASSES, dict(type='Reader'), *extra, dict(type='After')]
        quantize_detector(
            Tiny().eval(),
            batches(),
            dict(bits='w8a8', rules=RULES, passes=passes),
        )
        found, observers = seen['reader']
        assert (found is not None) == means
        assert observers > 3
        assert seen['after'] == 0


@pytest.mark.parametrize('first', ['ScaleInputs', 'ReparametrizeNorm'])
def test_two_that_cannot_go_together(first):
    second = {'ScaleInputs', 'ReparametrizeNorm'} - {first}
    passes = [PASSES[0], dict(type=first), dict(type=second.pop())]
    cfg = dict(bits='w8a8', rules=RULES, passes=[*passes, *PASSES[1:]])
    match = r'cannot go together; .* out \(scale_inputs=False\)'
    with pytest.raises(QuantConfigError, match=match):
        quantize_detector(Tiny().eval(), batches(), cfg)


class Fixed(BaseQuantizer):
    """Whole numbers; nothing of it can be searched."""

    def set_range(self, low, high):
        self.check_range(low, high)
        self.initialized.fill_(True)

    def encoding(self, x=None, level=0):
        one = torch.ones(1)
        return UniformEncoding(
            self.bits, self.granularity, one, one.int() * 0, 0, 3
        )

    def num_rows(self):
        return 1

    def parameter_bits(self, rows):
        return 0


@pytest.mark.parametrize('tensor', ['weight', 'act'])
def test_a_quantizer_that_cannot_be_searched_is_found_at_once(tensor):
    """Before a calibration image is run; other observers take it."""
    QUANTIZERS.register_module(module=Fixed)
    try:
        rules = [*RULES, {'match': 'side', tensor: dict(type='Fixed')}]
        cfg = dict(bits='w2a2', rules=rules, passes=PASSES)
        quantize_detector(Tiny().eval(), batches(), cfg)
        searching = [
            PASSES[0],
            dict(type='Observe'),
            dict(type='SetRanges'),
        ]
        model, data = Tiny().eval(), batches()
        model.test_step = None  # a prediction would fail
        with pytest.raises(QuantConfigError, match=r'side\..*LpObserver.*Fix'):
            quantize_detector(model, data, dict(cfg, passes=searching))
    finally:
        QUANTIZERS.module_dict.pop('Fixed')


def test_quantizing_twice_is_refused_and_changes_nothing():
    model, data = Tiny().eval(), batches()
    cfg = dict(bits='w8a8', rules=RULES, passes=PASSES)
    quantize_detector(model, data, cfg)
    with torch.no_grad():
        before = model(**data[0], mode='predict')
        with pytest.raises(PTQError, match='quantized already'):
            quantize_detector(model, data, cfg)
        after = model(**data[0], mode='predict')
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_port_without_statistics_is_named(registered):
    """Its new quantizer has a row for each channel, which nobody observed."""

    class Replacing(BasePass):
        def run(self, session):
            spec = QuantSpec(
                'UniformQuantizer', 4, dict(granularity='channel')
            )
            session.replace('side', 'input', spec)

    registered(Replacing)
    passes = [*PASSES[:2], dict(type='Replacing'), PASSES[2]]
    cfg = dict(bits='w8a8', rules=RULES, passes=passes)
    with pytest.raises(
        CalibrationError, match=r'side.*its input; put Observe'
    ):
        quantize_detector(Tiny().eval(), batches(), cfg)


def test_a_quantizer_left_without_a_range_is_named(registered):
    class Forgetting(BasePass):
        def run(self, session):
            spec = QuantSpec('UniformQuantizer', 4)
            session.replace('side', 'weight', spec)

    registered(Forgetting)
    passes = [*PASSES, dict(type='Forgetting')]
    cfg = dict(bits='w8a8', rules=RULES, passes=passes)
    with pytest.raises(CalibrationError, match=r'side: .*range of its weight'):
        quantize_detector(Tiny().eval(), batches(), cfg)
