# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Norms whose channels are brought to one grid, in whole models."""

import pytest
import torch
from mmdet.models.backbones import PyramidVisionTransformer, SwinTransformer
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmdet.models.layers import (
    DetrTransformerDecoder,
    DetrTransformerEncoder,
)
from mmengine.model import BaseModel
from resume_kit import stopped_and_resumed
from torch import nn

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.calibration import Batches
from mmdet_ptq.cost import cost_of
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes import FoldBatchNorm, ReparametrizeNorm
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.records import ReparametrizationRecord
from mmdet_ptq.surgery import (
    PaddedShiftWindowMSA,
    ReparametrizedNorm,
    ScaledInput,
)

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
PASSES = [
    dict(type='FoldBatchNorm'),
    dict(type='ReparametrizeNorm'),
    dict(type='Observe'),
    dict(type='SetRanges'),
    dict(type='CorrectBias'),
]
RULES = [dict(match='*', weight=dict(granularity='channel'), act={})]


class Net(BaseModel):
    """Something of transformers, its norms uneven."""

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.body = body()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                size = len(module.weight)
                wide = torch.logspace(-1, 1, size)[torch.randperm(size)]
                module.weight.data.copy_(wide)
                module.bias.data.copy_(wide * torch.randn(size) * 2)
        self.eval()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.run(torch.stack(list(inputs)))


class Swin(Net):
    """Maps of 5 x 7 in windows of 3, shifted in every other block."""

    def __init__(self):
        super().__init__(
            lambda: SwinTransformer(
                embed_dims=8,
                depths=(2, 2),
                num_heads=(2, 2),
                strides=(4, 2),
                out_indices=(0, 1),
                window_size=3,
                mlp_ratio=2,
            )
        )

    def run(self, x):
        return self.body(x)


class Detr(Net):
    """Post-norm layers, with positional encodings that are added."""

    def __init__(self):
        attn = dict(embed_dims=8, num_heads=2, batch_first=True)
        ffn = dict(embed_dims=8, feedforward_channels=16, num_fcs=2)
        layer = dict(self_attn_cfg=attn, ffn_cfg=ffn)
        super().__init__(
            lambda: nn.ModuleDict(
                dict(
                    encoder=DetrTransformerEncoder(2, layer),
                    decoder=DetrTransformerDecoder(
                        2,
                        dict(**layer, cross_attn_cfg=attn),
                        return_intermediate=True,
                    ),
                    stem=nn.Conv2d(3, 8, 4, 4),
                )
            )
        )
        self.pos, self.queries = torch.randn(1, 35, 8), torch.randn(1, 6, 8)

    def run(self, x):
        x = self.body.stem(x).flatten(2).transpose(1, 2)
        memory = self.body.encoder(x, self.pos, None)
        return self.body.decoder(
            torch.zeros_like(self.queries),
            key=memory,
            value=memory,
            query_pos=self.queries,
            key_pos=self.pos,
            key_padding_mask=None,
        )


class Pvt(Net):
    """A norm that a linear layer and a strided convolution read."""

    def __init__(self):
        super().__init__(
            lambda: PyramidVisionTransformer(
                embed_dims=8,
                num_stages=1,
                num_layers=[2],
                num_heads=[2],
                patch_sizes=[4],
                paddings=[0],
                use_abs_pos_embed=False,
                strides=[4],
                sr_ratios=[2],
                out_indices=(0,),
                mlp_ratios=[2],
            )
        )

    def run(self, x):
        return self.body(x)


class Convolutions(Net):
    def __init__(self):
        super().__init__(
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
            )
        )

    def run(self, x):
        return self.body(x)


def batches(count=4):
    rng = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[torch.randn(3, 20, 28, generator=rng)],
            data_samples=[None],
        )
        for _ in range(count)
    ]


def outputs(model):
    with torch.no_grad():
        found = [model(**b) for b in batches(2)]
    return torch.cat([y.flatten() for ys in found for y in ys])


def session_of(kind, rules=RULES, passes=PASSES, data=None):
    model = kind()
    data = batches() if data is None else data
    config = parse_quant_cfg(dict(bits='w8a4', rules=rules, passes=passes))
    session = prepare(model, config, data[0], Batches(model, data))
    FoldBatchNorm().run(session)
    return model, session


def run(kind, rules=RULES, **args):
    """The pass alone; the float model has to stay what it was."""
    model, session = session_of(kind, rules)
    with float_mode(model):
        before = outputs(model)
        ReparametrizeNorm(**args).run(session)
        after = outputs(model)
    assert float((after - before).norm() / before.norm()) < 1e-5
    records = [
        r for r in session.records if isinstance(r, ReparametrizationRecord)
    ]
    return model, session, records


@pytest.mark.parametrize('args', [{}, dict(ranges='lp')])
def test_swin_at_no_cost(args):
    """Windows that do not fit, shifted too; patch merging; the MLP."""
    model, session, records = run(Swin, **args)
    assert all(r.free and r.ratio > 10 for r in records)
    read = {name for r in records for name in r.layers}
    assert read == {
        n
        for n in session.layers
        if n.endswith(('qkv', 'ffn.layers.0.0', 'reduction'))
    }
    assert len(read) == 9
    assert {type(e) for e in session.edits[-9:]} == {ReparametrizedNorm}
    windows = [m for m in model.modules() if 'pad_value' in m._buffers]
    assert len(windows) == 4
    assert all(isinstance(m, PaddedShiftWindowMSA) for m in windows)
    # the bias that patch merging had not
    assert model.body.stages[0].downsample.reduction.bias is not None
    cost = cost_of(model, session.graph, session.plan)
    assert cost['scaled_elements'] == 0
    assert session.notes[-1].endswith(' for all, 9 of them at no cost')


def test_padding_with_zeros_would_be_seen():
    """The exactness above is that of the border."""
    model, _, _ = run(Swin)
    with float_mode(model):
        before = outputs(model)
        for module in model.modules():
            if 'pad_value' in module._buffers:
                module.pad_value.zero_()
        after = outputs(model)
    assert float((after - before).norm() / before.norm()) > 1e-3


def test_detr_scales_in_its_layers():
    """Residuals and sums read the norms: a second affine for the layers."""
    model, session, records = run(Detr)
    assert records and not any(r.free for r in records)
    assert not any(isinstance(e, ReparametrizedNorm) for e in session.edits)
    scaled = {e.layer for e in session.edits if isinstance(e, ScaledInput)}
    encoder = 'body.encoder.layers.'
    attention = '.self_attn.attn.'
    # what reads a norm, and a norm with a position added; the first layer
    # reads the stem
    for wanted in ('1{}q_proj', '1{}k_proj', '1{}v_proj'):
        assert encoder + wanted.format(attention) in scaled
        assert encoder + wanted.format(attention).replace('1', '0') not in (
            scaled
        )
    assert encoder + '0.ffn.layers.0.0' in scaled
    decoder = 'body.decoder.layers.'
    for wanted in ('0{}q_proj', '0{}k_proj', '1{}k_proj', '0{}v_proj'):
        assert decoder + wanted.format('.cross_attn.attn.') in scaled
    # behind ReLU or attention nothing is scaled
    assert not any(n.endswith(('out_proj', 'layers.1')) for n in scaled)
    cost = cost_of(model, session.graph, session.plan)
    assert cost['scaled_elements'] > 0
    # the exactness is that of the shifts
    with float_mode(model):
        before = outputs(model)
        for module in model.modules():
            if 'input_shift' in module._buffers:
                module.input_shift.zero_()
        after = outputs(model)
    assert float((after - before).norm() / before.norm()) > 1e-2


def test_one_norm_for_a_linear_layer_and_a_convolution():
    _, _, records = run(Pvt)
    assert all(r.free for r in records)
    ends = [{n.rpartition('.')[2] for n in r.layers} for r in records]
    # the norm of a block; that of its shorter map; that of the MLP
    assert ends[:2] == [{'sr', 'q_proj'}, {'k_proj', 'v_proj'}]
    assert len(ends) == 6


def test_the_grids_of_channels_against_rows_by_hand():
    """Every channel fills the one grid, as far as zero points are whole."""
    model, _, _ = run(Swin, rows=10**6, percentiles=[1.0])
    name = 'body.stages.0.blocks.0.ffn.layers.0.0'
    seen = []
    with (
        float_mode(model),
        model.get_submodule(name).listening(lambda p, i, x: seen.append(x)),
        torch.no_grad(),
    ):
        for batch in batches():
            model(**batch)
    x = torch.cat([t.flatten(0, 1) for t in seen])
    low, high = x.amin(0), x.amax(0)
    width = (high - low).mean()
    # all widths are the mean width; ends lie within a step of each other
    torch.testing.assert_close(high - low, width.expand(8), rtol=1e-3, atol=0)
    assert float(low.max() - low.min()) <= float(width) / 15 * 1.01
    assert float(low.max()) <= 0.5 * float(width) / 15
    assert float(high.min()) >= -0.5 * float(width) / 15


def test_symmetric_grids_are_not_shifted():
    rules = [*RULES, dict(match='*', act=dict(symmetric=True))]
    model, session, records = run(Swin, rules=rules)
    assert len(records) == 9 and all(r.free for r in records)
    assert not any(e.shifted for e in session.edits[-9:])
    assert not any('pad_value' in m._buffers for m in model.modules())
    assert model.body.stages[0].downsample.reduction.bias is None


class OwnWindows(ShiftWindowMSA):
    """Nobody said how it pads."""


class OtherSwin(Swin):
    def __init__(self):
        super().__init__()
        for module in self.modules():
            if type(module) is ShiftWindowMSA:
                module.__class__ = OwnWindows


def test_whoever_pads_in_another_way_leaves_it_to_the_layers():
    _, _, records = run(OtherSwin)
    free = {name for r in records if r.free for name in r.layers}
    assert len(records) == 9 and len(free) == 5
    assert not any(name.endswith('qkv') for name in free)


def test_the_detector_loses_less():
    errors = []
    for passes in (PASSES, [PASSES[0], *PASSES[2:]]):
        model = Swin()
        quantize_detector(
            model, batches(), dict(bits='w8a4', rules=RULES, passes=passes)
        )
        errors.append(float((outputs(model) - outputs(Swin())).norm()))
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize('kind', [Swin, Detr])
def test_an_artefact_has_it(kind, tmp_path):
    model = kind()
    session = quantize_detector(
        model, batches(), dict(bits='w4a4', rules=RULES, passes=PASSES)
    )
    assert session.edits
    save_quantized(session, tmp_path / 'quantized.pth')
    other = kind()
    load_quantized(other, tmp_path / 'quantized.pth')
    assert torch.equal(outputs(other), outputs(model))


def test_nothing_behind_norms_is_noted():
    _, session = session_of(Convolutions)
    before = len(session.edits)
    ReparametrizeNorm().run(session)
    assert 'nothing was reparametrized' in session.notes[-1]
    assert len(session.edits) == before and not session.records


def test_grids_of_channels_are_refused():
    rules = [*RULES, dict(match='*', act=dict(granularity='channel'))]
    with pytest.raises(QuantConfigError, match='of 9 inputs behind norms'):
        session_of(Swin, rules)


@pytest.mark.parametrize(
    'passes',
    [
        [PASSES[0], dict(type='ScaleInputs'), *PASSES[1:]],
        [*PASSES[:2], dict(type='ScaleInputs'), *PASSES[2:]],
        [*PASSES[:3], PASSES[1], *PASSES[3:]],
        PASSES[1:],
    ],
)
def test_its_place(passes):
    quant_cfg = dict(bits='w4a4', rules=RULES, passes=passes)
    with pytest.raises(QuantConfigError, match='ReparametrizeNorm'):
        quantize_detector(Swin(), batches(1), quant_cfg)


def test_nan_names_the_layer():
    data = batches(2)
    data[1]['inputs'][0].fill_(float('nan'))
    _, session = session_of(Swin, data=data)
    with pytest.raises(NumericError, match='NaN or Inf in its input'):
        ReparametrizeNorm().run(session)


def test_arguments():
    for bad in (
        dict(ranges='minmax'),
        dict(percentiles=[0.5]),
        dict(percentiles=[]),
        dict(percentiles=[0.9], ranges='lp'),
        dict(p=2.0),
        dict(p=0.0),
        dict(rows=0),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ReparametrizeNorm(**bad)


def test_it_is_resumed(tmp_path):
    quant_cfg = dict(bits='w4a4', rules=RULES, passes=PASSES)
    path = tmp_path / 'resume.pth'
    resumed, whole = stopped_and_resumed(
        Swin, batches(), quant_cfg, 'ReparametrizeNorm', path
    )
    assert resumed[1:] == whole[1:] and whole[2]
    assert resumed[0].keys() == whole[0].keys()
    assert all(torch.equal(resumed[0][n], t) for n, t in whole[0].items())
