# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The calibration loop by itself."""

import pytest
import torch

from mmdet_ptq.calibration import CalibrationImages
from mmdet_ptq.engine import CalibLoop


class Broken:
    """Five images of which the first and the fourth cannot be read."""

    def __getitem__(self, i):
        if i in (0, 3):
            raise OSError('broken')
        return dict(inputs=i)


class Runner:
    """Notes what it is asked for."""

    def __init__(self):
        self.said, self.model = [], self

    def call_hook(self, name, **args):
        self.said.append((name, *args.values()))

    def test_step(self, batch):
        self.said.append(batch['inputs'][0])

    def parameters(self):
        return iter([torch.zeros(1)])

    def data_preprocessor(self, batch, training):
        assert training is False
        return batch

    def __call__(self, inputs, mode):
        self.said.append((mode, inputs[0]))


@pytest.fixture
def loop():
    everyone = CalibrationImages(Broken(), list('abcde'), range(5))
    return CalibLoop(Runner(), everyone.take([1, 3, 4]), everyone)


def test_loop_goes_on_where_it_stopped(loop):
    after = []
    loop.predict(1, after.append)
    assert loop.runner.said == [
        ('before_calib', 3),
        ('before_calib_iter', 1),
        ('after_calib_iter', 1),
        ('before_calib_iter', 2),
        4,
        ('after_calib_iter', 2),
        ('after_calib',),
    ]
    assert after == [1, 2]
    assert loop.skipped == ['d'] and loop.total == 3
    assert loop.batch(0) == dict(inputs=[1]) and loop.batch(1) is None


def test_raw_images_are_those_of_all_ranks(loop):
    loop.run_raw(2)
    assert loop.runner.said == [('tensor', 1), ('tensor', 2)]
