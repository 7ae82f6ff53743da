# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images that are read one by one."""

import torch
from torch import nn

from mmdet_ptq.calibration import CalibrationImages, ImageFeed


class Source:
    """Images that are their number, one of which is broken."""

    def __getitem__(self, index):
        if index == 2:
            raise OSError('broken')
        return dict(inputs=torch.tensor([float(index)]), data_samples=None)


class Model(nn.Module):
    """Notes what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def test_step(self, batch):
        self.seen.append((float(batch['inputs'][0]), torch.is_grad_enabled()))

    def data_preprocessor(self, batch, training):
        assert not training
        return batch

    def forward(self, inputs, data_samples, mode):
        self.seen.append((mode, float(inputs[0]), torch.is_grad_enabled()))


def feed():
    images = CalibrationImages(Source(), list('abcde'), [4, 2, 1])
    return ImageFeed(Model(), images)


def test_predicts_in_order_and_passes_over_what_is_broken():
    one, after = feed(), []
    one.predict(after=after.append)
    assert one.model.seen == [(4.0, False), (1.0, False)]
    assert after == [0, 1, 2] and one.total == 3
    assert one.skipped == ['c']
    # what an earlier run could not read counts once
    one.skip(['c', 'a'])
    assert one.skipped == ['c', 'a']
    one.model.seen.clear()
    one.predict(2)
    assert one.model.seen == [(1.0, False)]


def test_raw_forwards_of_the_first_readable():
    one = feed()
    one.run_raw(2)
    assert one.model.seen == [('tensor', 4.0, False), ('tensor', 1.0, False)]
    assert one.batch(1) is None and float(one.batch(2)['inputs'][0]) == 1
