# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors whose layers get maps without a batch axis, or no rows."""

import pytest
import torch
from mmengine.model import BaseModel
from reconstruct_model import reconstruct
from torch import nn

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.errors import NumericError
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.quant_cfg import load_recipe, recipe_names

ALL = [dict(match='*', weight=dict(granularity='channel'), act={})]
#: of recipes that learn
QUICK = dict(iters=8, distribution_correction=dict(iters=2))


class Maps(BaseModel):
    """Convolutions on (C, H, W) or, of the same numbers, (1, C, H, W)."""

    def __init__(self, batched):
        super().__init__()
        torch.manual_seed(0)
        self.batched = batched
        self.backbone = nn.Conv2d(3, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.tower = nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float()).relu()
        x = x if self.batched else x[0]
        x = self.grouped(x).relu()
        return [self.out(self.tower(self.up(x)).relu()).reshape(2, -1)]


def images(count=8):
    generator = torch.Generator().manual_seed(1)
    return [
        dict(
            # an image is not square: axes cannot be taken for each other
            inputs=[torch.randn(3, 5, 7, generator=generator)],
            data_samples=[None],
        )
        for _ in range(count)
    ]


def cfg_of(recipe, **args):
    cfg = dict(recipe=recipe, bits='w4a4', **args)
    kinds = {one['type'] for one in load_recipe(recipe)['passes']}
    if 'Reconstruct' in kinds:
        quick = dict(QUICK)
        if recipe != 'pd_quant':
            del quick['distribution_correction']
        cfg['pass_args'] = dict(Reconstruct=quick)
    return cfg


@pytest.mark.parametrize('recipe', ['uniform', 'qdrop', 'adaquant', 'reg_ptq'])
@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_a_missing_batch_axis_changes_nothing(recipe, granularity):
    rules = [dict(match='*', act=dict(granularity=granularity))]
    rules.append(dict(match='grouped', act=dict(granularity='group')))
    found, losses = [], []
    for batched in (True, False):
        model = Maps(batched).eval()
        session = quantize_detector(
            model, images(), cfg_of(recipe, rules=rules)
        )
        found.append(named_tensors(model))
        losses.append([record.to_dict() for record in session.records])
        for one in losses[-1]:
            one.pop('seconds', None)
    assert list(found[0]) == list(found[1])
    assert losses[0] == losses[1]
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor), name


class Rows(BaseModel):
    """A head on rows, of which some images have none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
        )
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        rows = x.repeat(3, 1, 1, 1)[: 0 if x.shape[-1] == 6 else 3]
        rows = self.norm(self.conv(rows)).relu().mean((2, 3))
        return [self.out(self.fc(rows).relu())]


def some_without_rows(count=8, every=2):
    """The first of every few images has no rows."""
    generator = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[
                torch.randn(3, 8, 8 if i % every else 6, generator=generator)
            ],
            data_samples=[None],
        )
        for i in range(count)
    ]


@pytest.mark.parametrize('recipe', recipe_names())
@pytest.mark.parametrize('every', [1, 2])
def test_images_without_rows_leave_nothing_behind(recipe, every, tmp_path):
    model = Rows().eval()
    session = quantize_detector(
        model, some_without_rows(every=every), cfg_of(recipe)
    )
    plain = dict(Rows().named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if name in plain and 'fc' in name:
            assert (parameter - plain[name]).abs().max() < 0.1, name
    if every == 1:
        note = 'fc: its input stays float, no calibration data reached it'
        assert note in session.notes
    save_quantized(session, tmp_path / 'q.pth')
    again = load_quantized(Rows(), tmp_path / 'q.pth')
    for name, tensor in named_tensors(model).items():
        assert torch.equal(named_tensors(again)[name], tensor), name


def test_images_without_rows_teach_and_judge_nothing():
    seen = {}

    class Looking(Trainer):
        def fit(self, learners, acts, k):
            seen[self.view.name] = self.split()
            return super().fit(learners, acts, k)

    reconstruct(
        data=some_without_rows(), net=Rows, trainer=Looking, iters=2, rules=ALL
    )
    assert seen['backbone.0'] == ([0, 1, 2, 3, 4, 5, 6], [7])
    assert seen['fc'] == seen['conv'] == ([1, 3, 5], [7])


def test_what_gets_no_rows_is_not_learned():
    """The penalty of a learned rounding alone would move weights."""
    _, session = reconstruct(
        data=some_without_rows(every=1),
        net=Rows,
        revert=False,
        iters=60,
        rules=ALL,
        learn=[dict(type='AdaRound', reg=10.0)],
    )
    note = 'fc: not reconstructed, no calibration image reaches it'
    assert note in session.notes
    layer = session.layers['fc']
    nearest = layer.weight_quantizer(Rows().fc.weight.detach())
    assert torch.equal(layer.weight.detach(), nearest)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_not_finite_is_not_saved(value, tmp_path):
    model, path = Rows().eval(), tmp_path / 'q.pth'
    session = quantize_detector(model, some_without_rows(), cfg_of('minmax'))
    with torch.no_grad():
        model.fc.bias[1] = value
    with pytest.raises(NumericError, match=r'not saved: fc\.bias must be fin'):
        save_quantized(session, path)
    assert not path.exists()
    # a buffer that the float model had so, and that nothing touches
    model = Rows().eval()
    model.register_buffer('fill', torch.tensor([value]))
    session = quantize_detector(model, some_without_rows(), cfg_of('minmax'))
    with pytest.raises(NumericError, match=r'fill .* in the float checkpoint'):
        save_quantized(session, path)
    # a parameter ends the run at once
    model = Rows().eval()
    model.out.bias.data[0] = value
    with pytest.raises(NumericError, match=r'NaN or Inf in out\.bias'):
        quantize_detector(model, some_without_rows(), cfg_of('minmax'))
