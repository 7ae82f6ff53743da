# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Checkpoints of the Swin authors, made here by the inverse mapping."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from mmdet.models.backbones.swin import WindowMSA
from mmdet.models.layers import PatchMerging
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from tools.data import convert_swin_checkpoint as tool

ROOT = Path(__file__).parents[3]
BASES = ROOT / 'configs' / 'ptq' / '_base_' / 'transformers'
CASCADE = 'cascade-mask-rcnn_swin-t-p4-w7_fpn_3x_coco'


def theirs(name):
    """Their name of a weight of MMDetection's."""
    if not name.startswith('backbone.'):
        return name
    for new, old in (
        ('stages.', 'layers.'),
        ('projection.', 'proj.'),
        ('w_msa.', ''),
        ('ffn.layers.0.0.', 'mlp.fc1.'),
        ('ffn.layers.1.', 'mlp.fc2.'),
    ):
        name = name.replace(new, old)
    return name


@pytest.fixture(scope='module')
def detector():
    """The cascade with few channels."""
    register_all_modules()
    cfg = Config.fromfile(str(BASES / f'{CASCADE}.py')).model
    cfg.backbone.update(init_cfg=None, embed_dims=12)
    cfg.neck.in_channels = [12, 24, 48, 96]
    for head in cfg.roi_head.bbox_head:
        head.fc_out_channels = 8
    return MODELS.build(cfg)


def test_every_weight_has_its_place(detector):
    own = detector.state_dict()
    old = {theirs(name): value for name, value in own.items()}
    assert 'backbone.layers.2.blocks.5.mlp.fc2.weight' in old
    assert 'backbone.layers.0.blocks.1.attn.qkv.bias' in old
    assert 'backbone.layers.1.downsample.reduction.weight' in old
    assert 'backbone.patch_embed.proj.weight' in old
    found = tool.convert(old)
    assert {n: v.shape for n, v in found.items()} == {
        n: v.shape for n, v in own.items()
    }
    detector.load_state_dict(found, strict=True)


class Merging(nn.Module):
    """As the Swin authors describe it: patch after patch, then a norm."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):
        """(N, H, W, C) with even H and W."""
        corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
        found = [x[:, row::2, column::2] for row, column in corners]
        return self.reduction(self.norm(torch.cat(found, -1)))


def test_merged_patches_give_what_they_gave():
    torch.manual_seed(0)
    old, new = Merging(6), PatchMerging(6, 12)
    nn.init.normal_(old.norm.weight)
    nn.init.normal_(old.norm.bias)
    state = {
        f'backbone.layers.0.downsample.{n}': v
        for n, v in old.state_dict().items()
    }
    found = tool.convert(state)
    prefix = 'backbone.stages.0.downsample.'
    new.load_state_dict({n.removeprefix(prefix): v for n, v in found.items()})
    x = torch.randn(2, 4, 6, 6)
    want = old(x).flatten(1, 2)
    assert torch.allclose(new(x.flatten(1, 2), (4, 6))[0], want, atol=1e-6)


def test_positions_of_a_window_are_numbered_alike():
    """Else the biases of attention would be mixed up."""
    rows, columns = 3, 3
    at = list(itertools.product(range(rows), range(columns)))
    want = [
        [
            (r1 - r2 + rows - 1) * (2 * columns - 1) + c1 - c2 + columns - 1
            for r2, c2 in at
        ]
        for r1, c1 in at
    ]
    own = WindowMSA(8, 2, (rows, columns)).relative_position_index
    assert own.tolist() == want


def test_command(tmp_path, monkeypatch, capsys):
    value = torch.rand(8)
    source, target = tmp_path / 'a.pth', tmp_path / 'b' / 'b.pth'
    state = {'backbone.layers.0.downsample.norm.weight': value}
    torch.save(dict(state_dict=state, meta=dict(CLASSES=('a', 'b'))), source)
    monkeypatch.setattr(sys, 'argv', ['tool', str(source), str(target)])
    tool.main()
    assert '1 weights' in capsys.readouterr().out
    loaded = torch.load(target, weights_only=True)
    assert loaded['meta'] == dict(dataset_meta=dict(classes=['a', 'b']))
    (found,) = loaded['state_dict'].values()
    order = [0, 4, 2, 6, 1, 5, 3, 7]
    assert torch.equal(found, value[order])
    # and what comes out is not converted again
    monkeypatch.setattr(sys, 'argv', ['tool', str(target), str(source)])
    with pytest.raises(ValueError, match=r'needs no conversion'):
        tool.main()
