# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The sweep survives what single families do, and compares fairly."""

import importlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from torch import nn

from mmdet_ptq.testing import (
    Selections,
    bfloat16,
    cosine,
    noise_batches,
    random_detector,
    raw_outputs,
)
from mmdet_ptq.testing.detectors import _calm, _without_pretrained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def sweep():
    """The tool as a module."""
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        yield importlib.import_module('sweep_configs')
    finally:
        sys.path.remove(str(ROOT / 'tools'))


@pytest.fixture(scope='module')
def page(sweep):
    """The module that writes the page."""
    return importlib.import_module('support_page')


def test_families(sweep):
    found = sweep.families()
    assert len(found) > 80
    assert found['yolox'][0].name.startswith('yolox_nano')
    assert 'r18' in found['retinanet'][0].name
    assert '_base_' not in found
    # a Fast R-CNN without the RPN that the family is about comes last
    assert '_faster-rcnn' in found['cascade_rpn'][1].name


def test_a_crash_and_a_hang_are_rows(sweep, monkeypatch):
    monkeypatch.setattr(sweep, 'examine', lambda *_: os._exit(3))
    row = sweep.in_child([Path('x.py')], (8, 8), 20)
    assert 'exit code 3' in row['why'] and not row['quantized']
    monkeypatch.setattr(sweep, 'examine', lambda *_: time.sleep(60))
    row = sweep.in_child([Path('x.py')], (8, 8), 0.2)
    assert 'no result within' in row['why']


def test_examine_reports_where_a_family_fails(sweep, tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text("model = dict(type='NoSuchDetector')")
    row = sweep.examine([path], (8, 8))
    assert not row['built'] and 'NoSuchDetector' in row['why']


def test_cosine():
    a = [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])]
    b = [torch.tensor([6.0, 8.0]), torch.tensor([1.0, 1.0])]
    assert cosine(a, b) == pytest.approx(0.5**0.5)
    assert cosine(a, b[:1]) == -1
    assert cosine([torch.zeros(2)], [torch.zeros(2)]) == 1
    # nothing compared is nothing shown
    assert cosine([], []) == -1


def test_selections_replays_choices_on_other_numbers():
    x, y = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([5.0, 4.0, 6.0])
    with Selections() as first:
        assert x.topk(2)[1].tolist() == [1, 2]
        assert torch.argsort(x).tolist() == [0, 2, 1]
    with Selections(first.made):
        values, index = y.topk(2)
        assert index.tolist() == [1, 2] and values.tolist() == [4, 6]
        assert torch.argsort(y).tolist() == [0, 2, 1]
    assert y.topk(2)[1].tolist() == [2, 0]


def test_selections_replays_local_maxima_only():
    x, y = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([5.0, 4.0, 6.0])
    with Selections() as first:
        assert (x == torch.tensor([3.0, 3, 3])).tolist() == [0, 1, 0]
        assert (x == 3).any() and (x.long() == torch.ones(3).long()).any()
    assert len(first.made) == 1
    with Selections(first.made):
        assert (y == torch.tensor([6.0, 6, 6])).tolist() == [0, 1, 0]
        assert (y == torch.tensor([6.0, 6, 6])).tolist() == [0, 0, 1]


class Proposing(nn.Module):
    """An RPN that proposes what it is given, and ranks it."""

    def predict_by_feat(self, x):
        return [x.topk(2)[0]]


class Detecting(nn.Module):
    """A detector whose RPN is a part of a part."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Module()
        self.teacher.rpn_head = Proposing()
        self.fc = nn.Linear(2, 2)

    def data_preprocessor(self, batch, training):
        return batch

    def forward(self, x, mode):
        boxes = self.teacher.rpn_head.predict_by_feat(x)[0]
        return self.fc(boxes), x.topk(1)[0]


def test_proposals_are_given_again_wherever_the_rpn_is():
    torch.manual_seed(0)
    model, memory = Detecting(), {}
    first = raw_outputs(model, dict(x=torch.tensor([3.0, 2, 1])), memory)
    # on the way to proposals nothing is selected for later
    assert [x.tolist() for x in memory['selections']] == [[0]]
    again = raw_outputs(model, dict(x=torch.tensor([1.0, 5, 7])), memory)
    torch.testing.assert_close(again[0], first[0])
    assert again[1].item() == 1
    assert 'predict_by_feat' not in vars(model.teacher.rpn_head)


def test_bfloat16_leaves_nothing_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight  # shared
    x = torch.randn(4, 8)
    before, weight = model(x), model[0].weight.clone()
    with bfloat16(model):
        rounded = model(x)
    assert torch.equal(model(x), before)
    assert torch.equal(model[0].weight, weight)
    error = (rounded - before).norm() / before.norm()
    assert 2**-11 < error < 2**-7


def test_a_detector_that_distils_is_returned_too(tmp_path):
    """Its ``train`` and ``eval`` return None; its teacher is no file."""
    model = random_detector('mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py')
    assert isinstance(model, nn.Module) and not model.training


def test_configs_lose_what_needs_a_network_or_a_process_group():
    cfg = dict(
        init_cfg=dict(checkpoint='https://x'),  # PVT: no type
        pretrained='x',
        norm_cfg=[dict(type='MMSyncBN', requires_grad=True)],
        neck=dict(init_cfg=dict(type='Normal')),
    )
    assert _without_pretrained(cfg) == dict(
        init_cfg=None,
        pretrained=None,
        norm_cfg=[dict(type='BN', requires_grad=True)],
        neck=dict(init_cfg=dict(type='Normal')),
    )


def test_samples_bring_boxes_only_where_asked():
    assert 'proposals' not in noise_batches(1, (64, 96))[0]['data_samples'][0]
    sample = noise_batches(1, (64, 96), 40)[0]['data_samples'][0]
    boxes = sample.proposals.bboxes
    assert boxes.shape == (40, 4) and len(boxes.unique(dim=0)) == 40
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
    assert (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()


def test_random_offsets_count_but_stay_below_a_pixel():
    torch.manual_seed(0)
    pack = ModulatedDeformConv2dPack(64, 8, 3, padding=1)
    model = nn.Sequential(pack)
    nn.init.kaiming_normal_(pack.conv_offset.weight)
    _calm(model)
    offsets = pack.conv_offset(torch.randn(1, 64, 16, 16) + 1)
    assert 0.1 < offsets.std() < 1


def test_heads_start_as_mmdetection_starts_them():
    path = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    plain, started = random_detector(path), random_detector(path, heads=True)
    prior = started.bbox_head.retina_cls.bias.sigmoid()
    torch.testing.assert_close(prior, torch.full_like(prior, 0.01))
    assert plain.bbox_head.retina_cls.bias.unique().numel() > 1


def test_examine_tries_larger_images_then_other_starts(sweep, monkeypatch):
    tried = []

    def draw(path, size, heads, row):
        row['built'] = True
        tried.append((size, heads))
        if size[0] < 16:
            raise RuntimeError(f'{size[0]} is too small')
        return heads

    monkeypatch.setattr(sweep, '_draw', draw)
    quality = {False: 0.9, True: 0.8}
    monkeypatch.setattr(sweep, '_resolution', lambda run: quality[run])
    row, run = sweep._float_run(Path('x.py'), (8, 8))
    assert tried == [
        ((8, 8), False),
        ((16, 16), False),
        ((16, 16), True),
    ]
    # neither is good: the better of them
    assert run is False and row['bfloat16'] == 0.9
    assert row['size'] == [16, 16] and row['float_ok']
    tried.clear()
    row, run = sweep._float_run(Path('x.py'), (1, 1))
    assert tried == [
        ((i, i), heads)
        for i, heads in zip(
            (1, 2, 4, 1), (False, False, False, True), strict=True
        )
    ]
    assert run is None and '4 is too small' in row['why'] and row['built']
    tried.clear()
    quality[False] = 0.9999
    sweep._float_run(Path('x.py'), (16, 16))
    assert tried == [((16, 16), False)]


def test_examine_keeps_the_smallest_config_that_fails(sweep, tmp_path):
    paths = [tmp_path / f'{i}.py' for i in range(3)]
    for i, path in enumerate(paths):
        path.write_text(f"model = dict(type='No{i}')")
    row = sweep.examine(paths, (8, 8))
    assert row['config'] == '0.py' and 'No0' in row['why']


def test_predictions_are_made_without_gradients(sweep, monkeypatch):
    """As the test loop does: PointRend writes into a view."""

    class Writes(nn.Module):
        def test_step(self, batch):
            parts = (torch.ones(2, 2) * self.weight).split(1, 0)
            parts[0][:, 0] = 0
            return []

        weight = nn.Parameter(torch.ones(2, 2))

    session = SimpleNamespace(
        plan=SimpleNamespace(layers={}, uncovered={}),
        graph=SimpleNamespace(uncalled=[]),
    )
    monkeypatch.setattr(sweep, 'quantize_detector', lambda *_: session)
    monkeypatch.setattr(sweep, 'raw_outputs', lambda *_: [torch.ones(1)])
    run = sweep.FloatRun(Writes(), [{}, {}], {}, [torch.ones(1)])
    row = sweep.empty_row()
    sweep._quantized_run(run, row)
    assert row['predicts'] and row['cosine'] == 1


def test_markdown_counts(sweep, page):
    row = sweep.empty_row(
        config='a.py',
        built=True,
        float_ok=True,
        quantized=True,
        predicts=True,
        layers=3,
        left_float={'why': 2},
        cosine=0.995,
    )
    rows = {
        'good': row,
        'sort': dict(row, cosine=0.5, bfloat16=0.7),
        'no': dict(row, float_ok=False, predicts=False, why='Error: x'),
        'ssd': dict(row, size=(16, 8)),
    }
    text = page.to_markdown(rows, 7, 'cmd', (8, 8))
    assert (
        '4 of 7 families were run. **3** build' in text
        and '**2** of these (66.7 %)' in text
    )
    assert '| ssd | a.py | 16 x 8 |' in text
    # a row of an earlier version claims no size
    assert '| good | a.py |  |' in text and 'an earlier version' in text
    end = text[text.index('## Exceptions') :]
    assert '- **no**: `Error: x`.' in end
    assert 'Cosine 0.5000; the float model has 0.7000 in bfloat16.' in end
    assert page._FOUND['sort'] in end
    # words about a family that passes are not printed
    assert page._FOUND['ssd'] not in end and '**good**' not in end
    assert '## Exceptions' not in page.to_markdown(
        {'good': row}, 7, 'cmd', (8, 8)
    )


def test_resume_keeps_rows_and_writes_the_page(sweep, monkeypatch, tmp_path):
    store = tmp_path / 'page.json'
    # a row of a version that knew less
    store.write_text('{"ssd": {"config": "old.py", "why": "some reason"}}')
    paths = [Path('x.py')]
    monkeypatch.setattr(sweep, 'families', lambda: dict(ssd=paths, sort=paths))
    monkeypatch.setattr(
        sweep, 'in_child', lambda *_: sweep.empty_row(config='new.py')
    )
    out = tmp_path / 'page.md'
    monkeypatch.setattr(sys, 'argv', ['x', '--out', str(out), '--resume'])
    assert sweep.main() == 0
    text = out.read_text()
    assert '| ssd | old.py |' in text and '| sort | new.py |' in text
    out.unlink()
    assert sweep.main() == 0
    assert out.read_text() == text


def test_messages_name_no_folders(sweep):
    text = sweep.without_folders(
        'file "/a/b-1.0/c.py"  at /x/y.cpp":12\n 3 / 4 and a/b'
    )
    assert text == 'file "c.py" at y.cpp":12 3 / 4 and a/b'
