# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Mask heads are run only where something is made of their outputs."""

import copy
from contextlib import nullcontext

import torch
from tiny_kit import tiny_swin

from mmdet_ptq import quantize_detector
from mmdet_ptq.detectors import Adapter
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.testing import noise_batches


def learned(detector, mask):
    """The learned tensors, and how often the mask head ran."""
    loss = dict(type='DetectionLoss', theta_c=0.0, mask=mask)
    args = dict(iters=2, losses=[dict(type='L2Loss'), loss], revert=False)
    cfg = dict(
        recipe='qdrop',
        bits='w3a3',
        pass_args=dict(Reconstruct=args),
        rules=[dict(match='@backbone', skip=True)],
    )
    model, calls = copy.deepcopy(detector), []
    conv = model.roi_head.mask_head.convs[0]
    conv.register_forward_hook(lambda *_: calls.append(1))
    session = quantize_detector(model, noise_batches(2, (64, 96)), cfg)
    units = [record.unit for record in session.records]
    assert any(name.startswith('neck') for name in units)
    assert any(name.startswith('roi_head.mask_head') for name in units)
    return named_tensors(model), len(calls)


def test_masks_that_no_loss_reads_are_left_out(tmp_path, monkeypatch):
    detector = tiny_swin(tmp_path)
    found, few = learned(detector, mask=False)
    other, read = learned(detector, mask=True)
    monkeypatch.setattr(Adapter, 'without_masks', lambda self: nullcontext())
    wanted, many = learned(detector, mask=False)
    assert few < many / 2 and read == many
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert not all(torch.equal(other[n], wanted[n]) for n in wanted)
