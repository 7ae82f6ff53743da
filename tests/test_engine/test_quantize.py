# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The order of a quantization."""

import pytest
from two_levels import MINMAX, PASSES, RULES, Tiny, batches

from mmdet_ptq import quantize_detector
from mmdet_ptq.passes import SetRanges
from mmdet_ptq.registry import PASSES as REGISTRY

CFG = dict(bits='w8a8', rules=RULES)


class Told(SetRanges):
    """Notes what is done with it."""

    seen: list = []

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen.append(('built', self))

    def prepare(self, session):
        """Notes it."""
        super().prepare(session)
        self.seen.append(('prepared', self))

    def run(self, session):
        """Notes it."""
        super().run(session)
        self.seen.append(('run', self))


@pytest.fixture
def told():
    Told.seen = []
    REGISTRY.register_module(module=Told)
    yield [*PASSES[:2], dict(type='Told', weight_observer=MINMAX)]
    REGISTRY.module_dict.pop('Told')


def test_each_pass_is_built_once(told):
    """What is checked and prepared is what runs."""
    quantize_detector(Tiny().eval(), batches(), dict(CFG, passes=told))
    steps, passes = zip(*Told.seen, strict=True)
    assert steps == ('built', 'prepared', 'run')
    assert len(set(map(id, passes))) == 1
