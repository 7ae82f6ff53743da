# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Training images that calibrate, rank and verify."""

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from mmdet_ptq.calibration import from_config
from mmdet_ptq.engine.held_out import MetricScore, split_images
from mmdet_ptq.errors import CalibrationError, QuantConfigError
from mmdet_ptq.quant_cfg import Calibration


@pytest.fixture
def cfg(tiny):
    register_all_modules()
    return Config.fromfile(tiny.config['mask_rcnn'])


def test_parts_are_disjoint_and_none_is_tested(cfg, tiny):
    calibration = Calibration(num_samples=2, seed=3)
    split = split_images(cfg, calibration, 2, 2)
    names = split.names()
    every = [name for part in names.values() for name in part]
    assert len(every) == len(set(every)) == 6
    assert {len(part) for part in names.values()} == {2}
    assert all(f'{tiny.root}/train/' in name for name in every)
    # a run of mmdet-ptq quantize takes the same
    alone = from_config(cfg, calibration)
    assert names['calibrate'] == [alone.names[i] for i in alone.indices]
    assert '2 images calibrate, 2 others rank and 2 others' in split.words()


def test_none_verifies_where_none_is_asked_for(cfg):
    split = split_images(cfg, Calibration(num_samples=2), 1, 0)
    assert [len(part) for part in vars(split).values()] == [2, 1, 0]


def test_too_few(cfg):
    with pytest.raises(CalibrationError, match='7 images are needed, 2 to c'):
        split_images(cfg, Calibration(num_samples=2), 2, 3)


def test_the_test_is_not_looked_at(cfg):
    with pytest.raises(QuantConfigError, match='looks better than it is'):
        split_images(cfg, Calibration(source='test'), 1, 1)


def test_a_folder_has_no_objects(cfg, tiny):
    calibration = Calibration(num_samples=2, source=f'{tiny.root}/train')
    assert len(split_images(cfg, calibration, 2, 0).rank) == 2
    with pytest.raises(CalibrationError, match='have no objects to test on'):
        split_images(cfg, calibration, 2, 2)


class Perfect(nn.Module):
    """Finds every object of some images."""

    seen = (0, 1, 2, 3)

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def test_step(self, batch):
        for sample in batch['data_samples']:
            found = [one['bbox'] for one in sample.instances]
            labels = [one['bbox_label'] for one in sample.instances]
            if sample.img_id not in self.seen:
                found, labels = [], []
            masks = torch.zeros(len(found), *sample.ori_shape).bool()
            for mask, (x, y, right, low) in zip(masks, found, strict=True):
                mask[int(y) : int(low), int(x) : int(right)] = True
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(found).reshape(-1, 4).float(),
                scores=self.one * torch.ones(len(found)),
                labels=torch.tensor(labels).long(),
                masks=masks,
            )
        return batch['data_samples']


def metric_of(cfg, model):
    split = split_images(cfg, Calibration(num_samples=1), 1, 4)
    score = MetricScore(model, split.verify, cfg)
    score.measure_float()
    return score


def test_ap_is_that_of_the_images_that_verify(cfg, capsys):
    """All objects found is an AP of 1: none of other images is missed."""
    perfect = Perfect()
    score = metric_of(cfg, perfect)
    assert (score.metric, score.exact) == ('coco/bbox_mAP', 1.0)
    assert list(score.images) == [0, 1, 2, 3]

    def now():
        return score.total((j, score.run(j)) for j in score.images)

    assert now() == dict(score=0.0, metric=1.0)
    perfect.seen = (1, 2, 3)
    found = now()
    # a quarter of the objects is gone
    assert 0.5 < found['metric'] < 0.9
    assert found['score'] == 1.0 - found['metric']
    # nothing found at all
    perfect.seen = ()
    assert now() == dict(score=1.0, metric=0.0)
    # the tables of each evaluation are not printed
    assert 'Average Precision' not in capsys.readouterr().out


def test_masks_too(cfg):
    cfg.test_evaluator.metric = 'segm'
    score = metric_of(cfg, Perfect())
    assert (score.metric, score.exact) == ('coco/segm_mAP', 1.0)


def test_voc(tmp_path, monkeypatch, tiny):
    cfg = Config.fromfile(tiny.config['retinanet'])
    cfg.test_evaluator = dict(type='VOCMetric', metric='mAP')
    register_all_modules()
    score = metric_of(cfg, Perfect())
    assert (score.metric, score.exact) == ('pascal_voc/mAP', 1.0)


def test_other_evaluators(cfg):
    cfg.test_evaluator = [dict(type='LVISMetric', ann_file='x.json')]
    with pytest.raises(QuantConfigError, match='CocoMetric or VOCMetric'):
        metric_of(cfg, Perfect())
    # beside one of them, others are left out
    coco = dict(type='CocoMetric', ann_file='none.json', metric='bbox')
    cfg.test_evaluator = [dict(type='DumpDetResults', out_file_path='x'), coco]
    assert metric_of(cfg, Perfect()).exact == 1.0
