# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Doubts about calibration images."""

import json
from pathlib import Path

import cv2
import pytest
import torch

from mmdet_ptq.calibration.appearance import (
    appearance,
    doubts,
    spread,
    strangeness,
)

ROOT = Path(__file__).parents[2]


def noise(n, mean=0.0, std=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
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
    torch.testing.assert_close(row, expected, rtol=1e-6, atol=0)


def test_stacked_images_are_rows():
    batches = noise(3)
    stacked = torch.stack([b['inputs'][0] for b in batches])
    together = appearance([dict(inputs=stacked)])
    assert torch.equal(together, appearance(batches))
    assert together.shape == (3, 8)
    assert len(appearance([dict(inputs={'points': 1}), None])) == 0


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
