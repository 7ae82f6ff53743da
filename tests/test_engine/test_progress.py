# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the resume file holds."""

import torch

from mmdet_ptq import quantize_detector
from mmdet_ptq.engine.progress import restore, snapshot, without_twice
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.testing import noise_batches, random_detector


def test_tensors_that_a_pass_keeps_itself():
    finished = dict(tensors=dict(a=1), notes=[])
    assert without_twice(finished, {}) is finished
    assert without_twice(None, dict(tensors={})) is None
    assert without_twice(finished, dict(tensors={})) == dict(notes=[])
    assert finished['tensors'] == dict(a=1)


def test_they_take_the_place_of_the_others(tiny):
    session = quantize_detector(
        random_detector(tiny.config['retinanet']),
        noise_batches(1, (64, 64)),
        dict(recipe='minmax', bits='w8a8'),
    )
    found = snapshot(session)
    name = 'bbox_head.retina_cls.weight'
    state = dict(tensors=dict(found['tensors']))
    state['tensors'][name] = torch.ones_like(found['tensors'][name])
    restore(session, without_twice(found, state), state)
    assert bool((named_tensors(session.model)[name] == 1).all())
    restore(session, found, state)
    assert torch.equal(
        named_tensors(session.model)[name], found['tensors'][name]
    )
