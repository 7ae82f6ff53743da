# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The calibration pass against extremes computed by hand."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmdet_ptq.apis import quantize_detector
from mmdet_ptq.calibration.moments import ChannelMeans
from mmdet_ptq.errors import NumericError
from mmdet_ptq.observers import search_weight_range
from mmdet_ptq.passes import init_ranges
from mmdet_ptq.passes.init_ranges import _readers


class Tiny(BaseModel):
    """Two levels through one head; a side branch that tests skip."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, padding=1),
        )
        self.bbox_head = nn.Sequential(
            nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)
        )
        self.side = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.backbone[1].running_mean.normal_()
            self.backbone[1].running_var.uniform_(0.5, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)).float()
        x = self.backbone(x)
        levels = [x, 0.01 * x[..., ::2, ::2]]
        out = [self.bbox_head(level) for level in levels]
        if mode == 'tensor':
            return out, self.side(x).relu() @ torch.ones(8, 1)
        return out


def batches(n=4):
    generator = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[torch.randn(3, 8, 8, generator=generator)],
            data_samples=[None],
        )
        for _ in range(n)
    ]


RULES = [dict(match='*', weight=dict(granularity='channel'), act={})]
MINMAX = dict(type='MinMaxObserver')
PASSES = [
    dict(type='FoldBatchNorm'),
    dict(type='InitRanges', observer=MINMAX, weight_observer=MINMAX),
]


def inputs_of(model, name, data, mode):
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().clone())
    )
    with torch.no_grad():
        for batch in data:
            model(**batch, mode=mode)
    handle.remove()
    return seen


def test_minmax_ranges_by_hand():
    data, reference = batches(), Tiny().eval()
    x = torch.cat(
        [
            t.flatten()
            for t in inputs_of(reference, 'bbox_head.0', data, 'predict')
        ]
    )
    model = Tiny().eval()
    session = quantize_detector(
        model, data, dict(bits='w8a8', rules=RULES, passes=PASSES)
    )
    quantizer = model.bbox_head[0].act_quantizers['input']
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    torch.testing.assert_close(
        quantizer.scale, ((high - low) / 255).reshape(1, 1)
    )
    assert session.folds == {'backbone.1': 'backbone.0'}
    assert isinstance(model.backbone[1], nn.Identity)
    # what feeds the head at level 0 also feeds the side branch
    assert model.side.act_quantizers['input'] is quantizer


def test_ranges_for_each_level_and_group():
    data, reference = batches(), Tiny().eval()
    seen = inputs_of(reference, 'bbox_head.0', data, 'predict')
    rules = [
        *RULES,
        dict(match='@grouped', act=dict(granularity='group')),
        dict(match='*', act=dict(per_level=True)),
    ]
    model = Tiny().eval()
    quantize_detector(
        model, data, dict(bits='w8a8', rules=rules, passes=PASSES)
    )
    scale = model.bbox_head[0].act_quantizers['input'].scale
    for level in (0, 1):
        x = torch.cat([t.flatten() for t in seen[level::2]])
        torch.testing.assert_close(scale[level, 0], (x.max() - x.min()) / 255)
    assert scale[1, 0] < scale[0, 0] / 50
    assert model.backbone[3].act_quantizers['input'].scale.shape == (1, 8)


def test_layer_that_prediction_skips_gets_data_from_the_raw_mode():
    data = batches()
    data[1]['inputs'][0].mul_(3)  # only the first image is taken
    rules = [*RULES, dict(match='bbox_head.*', skip=True)]
    model = Tiny().eval()
    session = quantize_detector(
        model, data, dict(bits='w8a8', rules=rules, passes=PASSES)
    )
    x = torch.cat(
        [
            t.flatten()
            for t in inputs_of(Tiny().eval(), 'side', data[:1], 'tensor')
        ]
    )
    scale = model.side.act_quantizers['input'].scale.reshape(())
    torch.testing.assert_close(scale, (x.max() - x.min()) / 255)
    assert session.plan.layers['bbox_head.0'].why_float


def test_no_float_forward_is_left_quantized_or_tapped():
    model = Tiny().eval()
    session = quantize_detector(
        model, batches(), dict(bits='w4a4', rules=RULES, passes=PASSES)
    )
    for layer in session.layers.values():
        assert layer.tap is None and layer.quantize_act and layer.baked


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_nan_activation_names_the_layer(value):
    data = batches()
    data[2]['inputs'][0][0, 0, 0] = value
    with pytest.raises(NumericError, match=r'backbone\.0'):
        quantize_detector(
            Tiny().eval(), data, dict(bits='w8a8', rules=RULES, passes=PASSES)
        )


def test_nan_weight_names_the_layer():
    model = Tiny().eval()
    model.bbox_head[2].weight.data[0, 0] = float('nan')
    with pytest.raises(NumericError, match=r'bbox_head\.2'):
        quantize_detector(
            model, batches(), dict(bits='w8a8', rules=RULES, passes=PASSES)
        )


def test_bias_correction_takes_the_mean_error_away():
    """With float inputs and no borders the output mean becomes exact."""
    data = batches()
    reference = Tiny().eval()
    x = torch.cat(inputs_of(reference, 'bbox_head.0', data, 'predict')[::2])
    passes = [PASSES[0], dict(PASSES[1], correct_bias=True)]
    rules = [
        dict(match='bbox_head.*', weight=dict(granularity='tensor')),
        dict(match='backbone.3', weight={}),
    ]
    errors = {}
    for corrected, chosen in ((False, PASSES), (True, passes)):
        model = Tiny().eval()
        # one level only: then E[x] is the mean of x
        model.forward = (
            lambda inputs, data_samples=None, mode='tensor', m=model: (
                m.bbox_head(m.backbone(torch.stack(list(inputs))))
            )
        )
        quantize_detector(
            model, data, dict(bits='w2a8', rules=rules, passes=chosen)
        )
        with torch.no_grad():
            error = model.bbox_head[0](x) - reference.bbox_head[0](x)
        errors[corrected] = error.mean((0, 2, 3)).abs().max().item()
        assert error.abs().max() > 1e-2
    assert errors[False] > 1e-3
    assert errors[True] < 1e-5


def test_mean_output_is_what_a_constant_image_gives():
    from mmdet_ptq.calibration.moments import mean_output

    torch.manual_seed(0)
    mean = torch.randn(8).double()
    for layer in (
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.Conv2d(8, 16, 3, groups=8),
    ):
        layer = layer.double()
        image = mean[None, :, None, None].expand(1, 8, 5, 5)
        expected = layer(image)[0, :, 1, 1] - layer.bias
        torch.testing.assert_close(
            mean_output(layer, layer.weight, mean), expected
        )
    linear = nn.Linear(8, 3, bias=False).double()
    torch.testing.assert_close(
        mean_output(linear, linear.weight, mean), linear(mean)
    )


def test_means_count_positions_and_forget_no_order():
    """Sums of whole numbers: the same bits whatever comes first."""
    layer = nn.Conv2d(2, 3, 1)
    layer.weight_quantizer, layer.levels, layer.act_axis = object(), 1, 1
    generator = torch.Generator().manual_seed(0)
    images = [
        10.0 ** (i % 5) * torch.randn(1, 2, 3, 4 + i, generator=generator)
        for i in range(12)
    ]

    def means(*shares):
        found = ChannelMeans(dict(conv=layer))
        for share in shares:
            part = ChannelMeans(dict(conv=layer))
            for x in share:
                part.observe('conv', x)
            found.add(part.state_dict())
        return found

    whole = means(images)
    assert whole.counts == dict(conv=sum(3 * (4 + i) for i in range(12)))
    rows = torch.cat([x.double().flatten(2) for x in images], 2)
    mean = whole.sums['conv'].double() / 2**20 / whole.counts['conv']
    torch.testing.assert_close(mean, rows.mean((0, 2)), rtol=1e-4, atol=1e-3)
    other = means(images[7:][::-1], images[:3], images[3:7])
    assert torch.equal(other.sums['conv'], whole.sums['conv'])
    assert other.counts == whole.counts


def test_bias_of_a_layer_of_several_levels_stays():
    plain, model = Tiny().eval(), Tiny().eval()
    passes = [PASSES[0], dict(PASSES[1], correct_bias=True)]
    quantize_detector(
        model, batches(), dict(bits='w2a8', rules=RULES, passes=passes)
    )
    for index in (0, 2):
        assert torch.equal(
            model.bbox_head[index].bias, plain.bbox_head[index].bias
        )
    assert not torch.equal(model.backbone[3].bias, plain.backbone[3].bias)


def test_folding_twice_is_folding_once():
    model = Tiny().eval()
    passes = [PASSES[0], *PASSES]
    session = quantize_detector(
        model, batches(), dict(bits='w8a8', rules=RULES, passes=passes)
    )
    once = Tiny().eval()
    quantize_detector(
        once, batches(), dict(bits='w8a8', rules=RULES, passes=PASSES)
    )
    assert session.folds == {'backbone.1': 'backbone.0'}
    for name, tensor in once.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize('weight', [None, dict(granularity='channel')])
def test_port_that_no_data_reaches_stays_float(weight):
    class Empty(Tiny):
        """The side branch has nothing to do after the survey."""

        calls = 0

        def forward(self, inputs, data_samples=None, mode='tensor'):
            x = self.backbone(torch.stack(list(inputs)).float())
            if mode == 'tensor':
                self.calls += 1
                x = x if self.calls == 1 else x[:0]
                return self.bbox_head(x), self.side(x.sigmoid())
            return self.bbox_head(x)

    model = Empty().eval()
    session = quantize_detector(
        model,
        batches(),
        dict(
            bits='w8a8',
            rules=[*RULES, dict(match='side', weight=weight)],
            passes=PASSES,
        ),
    )
    assert not model.side.act_quantizers
    plan = session.plan.layers['side']
    assert plan.acts == dict(input=None)
    assert bool(plan.why_float) == (weight is None)
    assert not any(('side', 'input') in group for group in session.plan.groups)
    assert any('side' in note for note in session.notes)
    assert torch.isfinite(model(**batches()[0])[0]).all()


def test_readers_see_every_tensor_once():
    def node(*values):
        calls = [SimpleNamespace(inputs=(v,)) for v in values]
        return SimpleNamespace(ports=('input',), calls=calls)

    layers = dict(a=node(1), b=node(1, 2), c=node(2), d=node(3))
    group = [(n, 'input') for n in layers]
    found = _readers(SimpleNamespace(layers=layers), group)
    assert found == [(n, 'input') for n in 'abd']


def test_states_of_other_ranks_are_added_once(monkeypatch):
    """Three ranks, of which this is the second."""

    class Summing:
        def __init__(self, seen):
            self.seen = seen

        def state_dict(self):
            return self.seen

        def merge(self, states):
            self.seen += sum(states)

    def mean(value):
        found = ChannelMeans({})
        found.add(dict(sums=dict(x=value), counts=dict(x=1)))
        return found

    means, gathered = mean(10), [[[1], [10], [100]]]
    gathered.append([mean(v).state_dict() for v in (1, 10, 100)])
    monkeypatch.setattr(init_ranges, 'get_world_size', lambda: 3)
    monkeypatch.setattr(init_ranges, 'get_rank', lambda: 1)
    monkeypatch.setattr(
        init_ranges, 'all_gather_object', lambda _: gathered.pop(0)
    )
    observer = Summing(10)
    init_ranges._merge([observer], means)
    assert observer.seen == means.sums['x'] == 111
    assert means.counts == dict(x=3)


def test_raw_mode_is_not_for_what_predictions_reach():
    class Louder(Tiny):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            x = self.backbone(torch.stack(list(inputs)).float())
            if mode == 'tensor':
                return self.bbox_head(5 * x), self.side(x.sigmoid())
            return self.bbox_head(x)

    data, model = batches(), Louder().eval()
    seen = inputs_of(Louder().eval(), 'bbox_head.0', data, 'predict')
    x = torch.cat([t.flatten() for t in seen])
    quantize_detector(
        model, data, dict(bits='w8a8', rules=RULES, passes=PASSES)
    )
    scale = model.bbox_head[0].act_quantizers['input'].scale.reshape(())
    torch.testing.assert_close(scale, (x.max() - x.min()) / 255)
    scale = model.side.act_quantizers['input'].scale.reshape(())
    assert 0.5 / 255 < scale < 1 / 255


def test_norm_of_the_weights():
    """The search for weight ranges is told its exponent."""
    scales = {}
    for p in (1.0, 2.0, 8.0):
        model, weight = Tiny().eval(), Tiny().side.weight.detach()
        observer = dict(type='LpObserver', p=p)
        passes = [PASSES[0], dict(PASSES[1], weight_observer=observer)]
        quantize_detector(
            model, batches(1), dict(bits='w2a8', rules=RULES, passes=passes)
        )
        quantizer = model.side.weight_quantizer
        scales[p] = quantizer.scale.clone()
        quantizer.set_range(*search_weight_range(weight, quantizer, p=p))
        assert torch.equal(scales[p], quantizer.scale)
    assert not torch.equal(scales[1.0], scales[2.0])
    assert not torch.equal(scales[2.0], scales[8.0])
