# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which adapter a detector gets, and what all of them promise."""

import copy
import warnings

import pytest
import torch
from adapter_kit import FAMILIES, QUERY, detector, float_run, prepared, same
from mmdet.models.dense_heads import RetinaHead

from mmdet_ptq.detectors import Adapter, DenseAdapter, RawAdapter, find_adapter
from mmdet_ptq.registry import ADAPTERS
from mmdet_ptq.structures import DetectionOutputs

every = pytest.mark.parametrize('name', FAMILIES)


@every
def test_the_class_of_the_head_decides(name):
    model = detector(name)[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        adapter = find_adapter(model)
    assert type(adapter) is FAMILIES[name][3]


@every
def test_outputs_keep_the_contract_and_repeat(name):
    model, batch, adapter, anchor, outputs = float_run(name)
    assert all(type(v) is torch.Tensor for v in anchor.values())
    assert not any(v.requires_grad for v in anchor.values())
    with torch.no_grad():
        same(adapter.outputs(model, batch, anchor), outputs)
    again = adapter.anchor(model, batch)
    assert again.keys() == anchor.keys()
    assert all(torch.equal(again[k], anchor[k]) for k in anchor)
    for output in outputs:
        n = len(output.logits)
        assert isinstance(output, DetectionOutputs) and n > 0
        assert output.logits.dtype == output.boxes.dtype == torch.float32
        assert output.logits.isfinite().all()
        assert output.boxes.shape[0] == n and output.boxes.shape[-1] == 4
        assert output.levels is None or output.levels.shape == (n,)
        assert (output.background is None) == (output.activation == 'sigmoid')
        rows = torch.tensor([n - 1, 0, n // 2])
        picked = output.boxes[rows]
        if picked.dim() == 3:
            picked = picked[:, 0]
        found = output.decode(picked, rows)
        assert found.shape == (3, 4) and found.isfinite().all()
        # this RTMDet regresses distances that may be negative
        assert name == 'rtmdet' or (found[:, 2:] >= found[:, :2]).all()


@every
def test_gradients_reach_backbone_and_every_prediction_layer(name):
    model, batch, _, anchor, _ = float_run(name)
    model, adapter = copy.deepcopy(model), find_adapter(model)
    outputs = adapter.outputs(model, batch, anchor)
    sum(
        o.logits.tanh().sum() + o.boxes.tanh().mul(0.7).sum() for o in outputs
    ).backward()
    # the deepest weight of the backbone (DETR freezes the rest)
    weights = [p for p in model.backbone.parameters() if p.requires_grad]
    assert any(bool(p.grad is not None and p.grad.any()) for p in weights[-6:])
    untouched = {
        key
        for key, p in model.named_parameters()
        if 'head' in key
        and key.endswith('weight')
        and 'mask_head' not in key
        and (p.grad is None or not p.grad.any())
    }
    # branches that only the encoder's or earlier layers' outputs pass
    assert all('branches' in key for key in untouched), untouched
    if name in QUERY and untouched:
        last = {'bbox_head.cls_branches.1.weight'}
        assert not untouched & last


@pytest.mark.parametrize(
    'name', ['retinanet', 'faster_rcnn', 'cascade', 'detr', 'dino']
)
def test_two_images_are_two_single_ones(name):
    model, adapter = detector(name)[0], find_adapter(detector(name)[0], True)
    both = prepared(name, 2)
    with torch.no_grad():
        found = adapter.outputs(model, both, adapter.anchor(model, both))
        for i in range(2):
            one = dict(
                inputs=both['inputs'][i : i + 1],
                data_samples=both['data_samples'][i : i + 1],
            )
            single = adapter.outputs(model, one, adapter.anchor(model, one))
            for a, b in zip(found[i::2], single, strict=True):
                assert a.name == b.name
                torch.testing.assert_close(
                    a.logits, b.logits, rtol=1e-3, atol=1e-3
                )
                if b.boxes is not None:
                    rows = torch.arange(len(b.boxes))
                    x, y = a.boxes, b.boxes
                    if x.dim() == 3:
                        x, y = x[:, 0], y[:, 0]
                    torch.testing.assert_close(
                        a.decode(x, rows),
                        b.decode(y, rows),
                        rtol=1e-3,
                        atol=0.05,
                    )


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn', 'dino'])
def test_cached_features_can_be_replayed(name):
    model, batch, adapter, anchor, outputs = float_run(name)
    with torch.no_grad():
        feats = model.backbone(batch['inputs'])
    calls = []
    model.backbone.forward = lambda x: calls.append(1) or feats
    try:
        with torch.no_grad():
            same(adapter.outputs(model, batch, anchor), outputs)
    finally:
        del model.backbone.forward
    assert calls == [1]


class StrangeRetinaHead(RetinaHead):
    """Its outputs mean something else, as an override tells."""

    def predict_by_feat(self, *args, **kwargs):
        raise NotImplementedError


class SameRetinaHead(RetinaHead):
    """Other layers, outputs of the same meaning."""

    def forward_single(self, x):
        return super().forward_single(x)


def test_an_unknown_head_falls_back_with_a_warning():
    model = copy.deepcopy(detector('retinanet')[0])
    model.bbox_head.__class__ = StrangeRetinaHead
    with pytest.warns(UserWarning, match=r'StrangeRetinaHead.*L2') as said:
        adapter = find_adapter(model)
    assert len(said) == 1
    assert type(adapter) is RawAdapter
    batch = prepared('retinanet')
    anchor = adapter.anchor(model, batch)
    assert anchor == {}
    found = adapter.outputs(model, batch, anchor)
    scores, deltas = model.bbox_head(model.extract_feat(batch['inputs']))
    want = [*scores, *deltas]
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a, b) and a.requires_grad
    model.bbox_head.__class__ = SameRetinaHead
    assert type(find_adapter(model)) is DenseAdapter


def test_a_head_without_any_name_falls_back():
    with pytest.warns(UserWarning, match='Linear'):
        assert type(find_adapter(torch.nn.Linear(2, 2))) is RawAdapter


def test_adapters_of_users_come_first():
    model = copy.deepcopy(detector('retinanet')[0])
    model.bbox_head.__class__ = StrangeRetinaHead

    class Silent(Adapter):
        def outputs(self, model, batch, anchor):
            return []

    class Mine(Silent):
        heads = (StrangeRetinaHead,)

    class MineForAll(Silent):
        heads = (RetinaHead,)

    class MineAfter(MineForAll):
        pass

    for cls in (Mine, MineForAll, MineAfter):
        ADAPTERS.register_module(module=cls)
    try:
        assert type(find_adapter(model)) is Mine
        assert type(find_adapter(detector('retinanet')[0])) is MineAfter
        assert type(find_adapter(detector('atss')[0])) is DenseAdapter
    finally:
        for cls in (Mine, MineForAll, MineAfter):
            del ADAPTERS.module_dict[cls.__name__]
