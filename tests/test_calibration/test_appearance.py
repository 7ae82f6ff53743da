# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Doubts about calibration images."""

import json
from pathlib import Path

import cv2
import pytest
import torch
from log_kit import logged
from seeded import seeded
from torch import nn

from mmdet_ptq.calibration import Batches, CalibrationImages
from mmdet_ptq.calibration.appearance import (
    appearance,
    doubts,
    notes_on,
    spread,
    strangeness,
)

ROOT = Path(__file__).parents[2]


def noise(n, mean=0.0, std=1.0, seed=0):
    generator = seeded(seed)
    # images of a set differ more than pixels at random do
    lift = 0.3 * torch.randn(n, 3, 1, 1, generator=generator)
    x = torch.randn(n, 3, 16, 16, generator=generator)
    return [dict(inputs=[image]) for image in mean + lift + std * x]


def test_a_row_by_hand():
    image = torch.zeros(2, 2, 4, dtype=torch.uint8)
    image[0, :, 2:] = 4
    image[1] = 7
    (row,) = appearance([None, dict(inputs=[image])])
    # of 3 steps to the right in one of two channels one is 4; none is down
    edge = (4 / 3 / 2 + 0) / 2
    expected = torch.tensor([2, 7, 2, 0, edge, 3], dtype=torch.double)
    expected = expected.cpu()
    torch.testing.assert_close(row, expected, rtol=1e-6, atol=0)


def test_stacked_images_are_rows():
    batches = noise(3)
    stacked = torch.stack([b['inputs'][0] for b in batches])
    together = appearance([dict(inputs=stacked)])
    assert torch.equal(together, appearance(batches))
    assert together.shape == (3, 8)
    assert len(appearance([dict(inputs={'points': 1}), None])) == 0
    assert len(appearance([dict(inputs=[torch.ones(9, 4)])])) == 0


def test_an_image_of_one_line():
    """Has no neighbours below."""
    (row,) = appearance([dict(inputs=[torch.arange(4.0).reshape(1, 1, 4)])])
    assert row.tolist() == pytest.approx([1.5, 1.25**0.5, 0.5, 2])


def test_doubts():
    usual = appearance(noise(8))
    assert doubts(usual, 8) == []
    (few,) = doubts(usual[:7], 7)
    assert few.startswith('only 7 calibration images')
    (same,) = doubts(usual[:1].expand(9, -1), 9)
    assert same.startswith('9 calibration images are all the same')
    grey = [dict(inputs=[torch.full((3, 4, 4), i)]) for i in range(9)]
    (constant,) = doubts(appearance(grey), 9)
    assert constant.startswith('the calibration images are of one colour')
    # one image says nothing about the others
    assert len(doubts(usual[:1], 1)) == 1
    # what is counted are images, whether they were looked at or can be
    assert doubts(usual[:3], 100) == doubts(appearance([None]), 9) == []
    assert len(doubts(usual, 7)) == 1
    # a few of one colour are no reason
    assert doubts(torch.cat([usual, appearance(grey[:1])]), 9) == []


@pytest.mark.parametrize(
    ('other', 'says'),
    [
        (noise(32, mean=1.0, seed=1), 'the mean in channel'),
        (noise(32, std=0.5, seed=1), 'on average'),
        ([dict(inputs=[b['inputs'][0] / 255]) for b in noise(32)], 'average'),
    ],
)
def test_other_images(other, says):
    found = strangeness(appearance(other), appearance(noise(32)))
    assert says in found and 'unlike the test images' in found


def test_images_of_another_size():
    """An eighth of the pixels; brightness and edges are the same."""
    small = [dict(inputs=[b['inputs'][0][:, :4, :8]]) for b in noise(32)]
    found = strangeness(appearance(small), appearance(noise(32)))
    assert 'log2 of the pixels is 5, in the test 8' in found
    cut = [dict(inputs=[b['inputs'][0][:, :, :12]]) for b in noise(32)]
    assert strangeness(appearance(cut), appearance(noise(32))) is None


def test_more_of_the_same_images():
    for seed in range(1, 20):
        found = strangeness(
            appearance(noise(32, seed=seed)), appearance(noise(32))
        )
        assert found is None


def test_too_few_to_tell():
    other = appearance(noise(32, mean=9.0))
    assert strangeness(other, appearance(noise(7))) is None
    assert strangeness(other[:7], appearance(noise(32))) is None


def test_what_cannot_be_compared_is_not():
    grey = [dict(inputs=[b['inputs'][0][:1]]) for b in noise(32, mean=9.0)]
    assert strangeness(appearance(grey), appearance(noise(32))) is None


def test_rounding_is_no_difference():
    """Sets without any deviation, of which an error could be taken."""
    rows = appearance(noise(1)).expand(32, -1)
    assert strangeness(rows + 1e-3, rows) is None
    assert 'unlike' in strangeness(rows + 1e-2, rows)


class Seen:
    """Images of a test; notes which were read."""

    def __init__(self, batches):
        self.batches, self.read = batches, []

    def __getitem__(self, i):
        self.read.append(i)
        return dict(inputs=self.batches[i]['inputs'][0])

    def all(self):
        """As a choice of images."""
        count = len(self.batches)
        return CalibrationImages(self, ['x'] * count, range(count))


class Looked(Batches):
    """Batches; notes which were read."""

    def __init__(self, batches):
        super().__init__(nn.Identity(), batches)
        self.read = []

    def batch(self, i):
        """Notes it."""
        self.read.append(i)
        return super().batch(i)


def test_notes_are_told_and_kept():
    feed, test = Looked(noise(64, mean=1.0)), Seen(noise(40))
    with logged() as said:
        (note,) = notes_on(feed, 64, test.all())
    assert 'unlike the test images' in note and said.text == note + '\n'
    # 32 of each
    assert feed.read == list(range(0, 64, 2))
    assert test.read == [i * 40 // 32 for i in range(32)]
    with logged() as said:
        assert notes_on(feed, 64) == []
        assert notes_on(feed, 64, Seen(noise(40, mean=1.0)).all()) == []
    assert said.text == ''


def test_few_images_are_compared_with_none():
    test = Seen(noise(40))
    (few,) = notes_on(Looked(noise(7, mean=9.0)), 7, test.all())
    assert few.startswith('only 7') and test.read == []


def test_images_that_cannot_be_read_are_no_images():
    class Broken(Looked):
        skipped = ('a', 'b')

    (few,) = notes_on(Broken(noise(9)), 9)
    assert few.startswith('only 7 calibration images')
    assert notes_on(Looked(noise(9)), 9) == []


def test_images_spread_over_a_set():
    assert spread(3) == [0, 1, 2]
    assert spread(64) == list(range(0, 64, 2))
    assert len(set(spread(33))) == 32 and spread(0) == []


def test_digits_know_their_own_training_images():
    """And sharper images of the same brightness are strangers to them."""

    def seen(part, start, sharp=False):
        names = json.loads((ROOT / f'data/digits/{part}.json').read_text())
        names = [i['file_name'] for i in names['images']][start : start + 32]
        for name in names:
            image = cv2.imread(str(ROOT / 'data/digits' / part / name))
            if sharp:
                image = cv2.addWeighted(
                    image, 4, cv2.GaussianBlur(image, None, 2), -3, 0
                )
            yield dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)])

    test = appearance(seen('val', 0))
    for start in (0, 500, 1000):
        assert strangeness(appearance(seen('train', start)), test) is None
    other = strangeness(appearance(seen('train', 0, sharp=True)), test)
    assert 'neighbouring pixels' in other or 'deviation' in other
