# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The detector inside what is wrapped around one."""

import pytest
from mmdet.models.mot import BaseMOTModel
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.model import MMDistributedDataParallel
from torch import nn

from mmdet_ptq.detectors import detector_of, without_wrapper
from mmdet_ptq.testing import random_detector


@pytest.fixture
def detector(tiny):
    return random_detector(tiny.config['retinanet'])


def test_nothing_around_it(detector):
    assert detector_of(detector) is detector


def test_time_augmentation(detector):
    cfg = dict(type='DetTTAModel', tta_cfg=dict(max_per_img=9))
    assert detector_of(MODELS.build(dict(cfg, module=detector))) is detector


def test_several_gpus(detector):
    """The wrapper without its process group."""
    wrapped = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = detector
    assert detector_of(wrapped) is detector
    assert without_wrapper(wrapped) is detector


def test_a_wrapper_in_a_wrapper(detector):
    """Test time augmentation on several GPUs, and within a tracker."""
    cfg = dict(type='DetTTAModel', tta_cfg=dict(max_per_img=9))
    model = MODELS.build(dict(cfg, module=detector))
    assert without_wrapper(nn.DataParallel(model)) is detector
    tracker = Tracker()
    tracker.detector = model
    assert detector_of(nn.DataParallel(tracker)) is detector


@pytest.mark.parametrize('on', ['teacher', 'student', None])
def test_teacher_and_student(tiny, on):
    cfg = Config.fromfile(tiny.config['retinanet']).model
    model = MODELS.build(
        ConfigDict(
            type='SemiBaseDetector',
            detector=cfg,
            semi_train_cfg=dict(freeze_teacher=True),
            semi_test_cfg=dict(predict_on=on) if on else dict(),
        )
    )
    found = detector_of(model)
    assert found is (model.student if on == 'student' else model.teacher)
    # a checkpoint has both
    assert without_wrapper(model) is model


class Tracker(BaseMOTModel):
    """A tracker without association; those shipped need more packages."""

    def loss(self, *_):
        """Not used."""

    def predict(self, *_):
        """Not used."""


def test_tracker(detector):
    tracker = Tracker()
    assert detector_of(tracker) is tracker
    tracker.detector = detector
    assert detector_of(tracker) is detector
