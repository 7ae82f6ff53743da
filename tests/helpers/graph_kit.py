# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Toy layers and MMDetection's own detectors with random weights."""

from pathlib import Path
from types import SimpleNamespace

import mmdet
import pytest
import torch
from mmcv.cnn.bricks import wrappers
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
)
from mmdet.models.backbones.swin import WindowMSA
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from mmdet_ptq.graph import survey

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'


class MatMul(nn.Module):
    def forward(self, a, b):
        return a @ b


class ToyWindowMSA(WindowMSA):
    """Swin's attention, its products as modules."""

    def split(self):
        self.qk, self.pv = MatMul(), MatMul()

    def forward(self, x, mask=None):
        tokens = x.shape[1]
        qkv = self.qkv(x).reshape(len(x), tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attn = self.qk(q * self.scale, k.transpose(-2, -1))
        bias = self.relative_position_bias_table[
            self.relative_position_index.view(-1)
        ]
        attn = attn + bias.view(tokens, tokens, -1).permute(2, 0, 1)[None]
        if mask is not None:
            attn = attn.view(-1, len(mask), self.num_heads, tokens, tokens)
            attn = (attn + mask[:, None]).view(
                -1, self.num_heads, tokens, tokens
            )
        attn = self.attn_drop(self.softmax(attn))
        out = self.pv(attn, v).transpose(1, 2).reshape(x.shape)
        return self.proj_drop(self.proj(out))


class ToyMultiheadAttention(nn.MultiheadAttention):
    """Batch-second or batch-first attention with called projections."""

    def split(self):
        width = self.embed_dim
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out_proj.__class__ = nn.Linear
        self.qk, self.pv = MatMul(), MatMul()

    def forward(
        self, query, key, value, attn_mask=None, key_padding_mask=None
    ):
        if not self.batch_first:
            query, key, value = (
                t.transpose(0, 1) for t in (query, key, value)
            )
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.q(query), self.k(key), self.v(value))
        )
        logits = self.qk(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        if key_padding_mask is not None:
            logits = logits.masked_fill(key_padding_mask[:, None, None], -1e4)
        out = self.pv(torch.softmax(logits, dim=-1), v)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


LEAVES = {
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Linear,
    wrappers.Conv2d,
    wrappers.ConvTranspose2d,
    wrappers.Linear,
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    MatMul,
}


def is_leaf(module):
    return type(module) in LEAVES


def ports(module):
    return ('a', 'b') if isinstance(module, MatMul) else ('input',)


def look(model, forward=None, shape=(1, 3, 16, 16), **kwargs):
    """Surveys a model, by default on a random image batch."""
    model.eval()
    if forward is None:
        torch.manual_seed(0)
        image = torch.rand(shape)
        forward = lambda: model(image)  # noqa: E731
    return survey(model, forward, is_leaf=is_leaf, ports=ports, **kwargs)


def with_role(graph, role):
    return [n for n, layer in graph.layers.items() if role in layer.roles]


def build(path, edit=None):
    """Builds a detector of MMDetection from its installed config."""
    register_all_modules()
    cfg = Config.fromfile(CONFIGS / path).model
    cfg.backbone.init_cfg = None
    if edit:
        edit(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg).eval()
    for module in list(model.modules()):
        if type(module) is WindowMSA:
            module.__class__ = ToyWindowMSA
            module.split()
        elif type(module) is nn.MultiheadAttention:
            module.__class__ = ToyMultiheadAttention
            module.split()
    return model


def inputs(size):
    side = (size, size)
    meta = {
        k: side
        for k in ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    }
    sample = DetDataSample(
        metainfo={**meta, 'scale_factor': (1.0, 1.0), 'img_id': 0}
    )
    torch.manual_seed(1)
    return torch.rand(1, 3, size, size), [sample]


@pytest.fixture(scope='session')
def kit():
    """The helpers above, since test folders are no packages."""
    return SimpleNamespace(
        MatMul=MatMul,
        build=build,
        inputs=inputs,
        is_leaf=is_leaf,
        look=look,
        ports=ports,
        with_role=with_role,
    )


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
