# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The order of a quantization."""

import pytest
import torch
from torch.nn.utils import prune
from two_levels import MINMAX, PASSES, RULES, Tiny, batches

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import check_names, prepare
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.passes import SetRanges
from mmdet_ptq.quant_cfg import parse_quant_cfg
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


def test_names_of_a_model_whose_weights_are_computed():
    """A copy is looked at; PyTorch copies no tensor with a history."""
    model = Tiny().eval()
    prune.l1_unstructured(model.side, 'weight', 0.5)
    before = model.side.weight.clone()
    rules = [*RULES, dict(match='no.such', skip=True)]
    for found in (RULES, rules):
        config = parse_quant_cfg(dict(CFG, rules=found, passes=PASSES))
        if found is rules:
            with pytest.raises(QuantConfigError, match=r'no\.such'):
                check_names(model, config)
        else:
            check_names(model, config)
    assert prune.is_pruned(model.side)
    assert torch.equal(model.side.weight, before)


def test_layers_that_take_more_than_in_float_are_noted():
    """256 values of 32 bits for each channel are more than its codes save."""

    def notes(bits):
        rule = dict(weight=dict(type='CodebookQuantizer', bits=bits))
        rules = [*RULES, dict(match='bbox_head.0', **rule)]
        config = dict(bits='w4a4', rules=rules, passes=PASSES)
        data, model = batches(1), Tiny().eval()
        feed = Batches(model, data)
        return prepare(model, parse_quant_cfg(config), data[0], feed).notes

    (told,) = [n for n in notes(8) if 'larger than in float32' in n]
    assert ': bbox_head.0; ' in told
    assert not any('larger than' in n for n in notes(2))
