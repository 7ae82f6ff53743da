# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A small detector whose bits are allocated."""

from reconstruct_model import RULES, Net, batches

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.passes import AllocateBits, Observe
from mmdet_ptq.quant_cfg import parse_quant_cfg

IMAGES = 4
#: weights and inputs of Net but for the prediction, in execution order
LAYERS = [
    'backbone.0',
    'backbone.2.conv1',
    'backbone.2.conv2',
    'backbone.3.conv1',
    'backbone.3.conv2',
    'neck.0',
    'neck.1',
    'tower',
]


def passes(**args):
    return [
        dict(type='Observe'),
        dict(type='AllocateBits', **args),
        dict(type='SetRanges'),
    ]


def allocated(bits='w4a4', rules=RULES, net=Net, data=None, **args):
    """Model and session of a whole quantization."""
    model = net().eval()
    cfg = dict(bits=bits, rules=rules, passes=passes(**args))
    return model, quantize_detector(model, data or batches(IMAGES), cfg)


def planned(bits='w4a4', rules=RULES, net=Net, data=None, **args):
    """Session before the first pass; what does not fit is refused."""
    model, data = net().eval(), data or batches(IMAGES)
    cfg = dict(bits=bits, rules=rules, passes=passes(**args))
    return prepare(model, parse_quant_cfg(cfg), data[0], Batches(model, data))


def observed(**args):
    """Session behind ``Observe``, and the pass that comes next."""
    session = planned(**args)
    Observe().run(session)
    kinds = session.config.built_passes
    return session, next(p for p in kinds if isinstance(p, AllocateBits))


def of_kind(session, kind):
    return [r for r in session.records if isinstance(r, kind)]
