# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The calibration forwards."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from crossings import crossings
from observer_kit import ALL
from two_levels import MINMAX, PASSES, RULES, Tiny, batches, inputs_of

from mmdet_ptq.apis import quantize_detector
from mmdet_ptq.calibration.moments import ChannelMeans
from mmdet_ptq.errors import NumericError
from mmdet_ptq.passes import observe
from mmdet_ptq.passes.observe import readers, unreached_line


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


def test_the_model_is_left_quantized():
    model = Tiny().eval()
    session = quantize_detector(
        model, batches(), dict(bits='w4a4', rules=RULES, passes=PASSES)
    )
    for layer in session.layers.values():
        assert layer.quantize_act and layer.baked


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


def test_one_line_for_heads_that_no_data_reaches():
    line = unreached_line(
        [
            'roi_head.mask_head.convs.0.conv',
            'roi_head.mask_head.upsample',
            'roi_head.mask_head.upsample',
            'bbox_head',
            'neck.lateral',
        ]
    )
    assert 'roi_head.mask_head (2), bbox_head (1), neck (1);' in line


def test_a_detector_without_raw_mode_and_an_unreached_layer():
    class Picky(Tiny):
        """The side branch runs in the first prediction alone."""

        calls = 0

        def forward(self, inputs, data_samples=None, mode='tensor'):
            if mode == 'tensor':
                raise NotImplementedError
            x = self.backbone(torch.stack(list(inputs)).float())
            self.calls += 1
            if self.calls == 1:
                self.side(x.relu())
            return self.bbox_head(x)

    model = Picky().eval()
    session = quantize_detector(
        model, batches(), dict(bits='w8a8', rules=RULES, passes=PASSES)
    )
    lines = [n for n in session.notes if n.startswith('no calibration image')]
    assert len(lines) == 1 and 'float: side (1);' in lines[0]
    assert not model.side.act_quantizers


def test_a_layer_of_the_raw_mode_hides_no_other():
    class Aside(Tiny):
        """The side branch, which predictions skip, reads first."""

        def forward(self, inputs, data_samples=None, mode='tensor'):
            x = self.backbone(torch.stack(list(inputs)).float())
            if mode == 'tensor':
                return self.side(x), self.bbox_head(x)
            return self.bbox_head(x)

    data, model = batches(), Aside().eval()
    data[1]['inputs'][0].mul_(3)
    seen = inputs_of(Aside().eval(), 'bbox_head.0', data, 'predict')
    x = torch.cat([t.flatten() for t in seen])
    rules = [*RULES, dict(match='*', act=dict(per_level=False))]
    quantize_detector(
        model, data, dict(bits='w8a8', rules=rules, passes=PASSES)
    )
    first = model.bbox_head[0].act_quantizers['input']
    assert first is model.side.act_quantizers['input']
    # of all images, not of the one that the raw mode is run on
    scale = first.scale.reshape(())
    torch.testing.assert_close(scale, (x.max() - x.min()) / 255)


def test_readers_see_every_tensor_once():
    def node(*values):
        calls = [SimpleNamespace(inputs=(v,)) for v in values]
        return SimpleNamespace(ports=('input',), calls=calls)

    layers = dict(a=node(1), b=node(1, 2), c=node(2), d=node(3))
    group = [(n, 'input') for n in layers]
    graph = SimpleNamespace(layers=layers, predicted=frozenset())
    assert readers(graph, group) == [(n, 'input') for n in 'abd']
    graph.predicted = frozenset('cbd')
    assert readers(graph, group) == [(n, 'input') for n in 'bd']


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
        found.add(dict(sums=dict(x=torch.tensor(value)), counts=dict(x=1)))
        return found

    means, gathered = mean(10), [[[1], [10], [100]]]
    gathered.append([mean(v).state_dict() for v in (1, 10, 100)])
    monkeypatch.setattr(observe, 'get_world_size', lambda: 3)
    monkeypatch.setattr(observe, 'get_rank', lambda: 1)
    monkeypatch.setattr(
        observe, 'all_gather_object', lambda _: gathered.pop(0)
    )
    observer = Summing(10)
    observe.merge_ranks([observer], means)
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


@pytest.mark.parametrize('name', sorted(ALL))
def test_an_image_waits_once_more_than_the_float_model(name):
    class Marked(Tiny):
        marks: ClassVar[list] = []

        def test_step(self, data):
            self.marks.append(found.copy())
            return super().test_step(data)

    data, model = batches(), Tiny().eval()
    with crossings() as alone:
        model.test_step(data[0])
    observer = dict(type=type(ALL[name]()).__name__)
    passes = [
        dict(type='FoldBatchNorm'),
        dict(type='Observe', observer=observer),
        dict(type='SetRanges', weight_observer=MINMAX),
        dict(type='CorrectBias'),
    ]
    with crossings() as found:
        cfg = dict(bits='w8a8', rules=RULES, passes=passes)
        quantize_detector(Marked().eval(), data, cfg)
    # from one image of the calibration to the next
    images = Marked.marks[-len(data) :]
    for before, after in pairwise(images):
        assert after - before == alone + Counter(cpu=1)
