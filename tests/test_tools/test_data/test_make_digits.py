# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

pytest.importorskip('sklearn')

from sklearn.datasets import load_digits

from tools.data import draw_digits
from tools.data import make_digits as tool


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp('digits')
    assert tool.make_digits(out, train=24, val=12, seed=3)
    return out


def read(out, split):
    return json.loads((out / f'{split}.json').read_text())


def contents(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob('*'))
        if path.is_file()
    }


def test_same_seed_same_bytes(digits, tmp_path):
    tool.make_digits(tmp_path / 'a', train=24, val=12, seed=3)
    assert contents(tmp_path / 'a') == contents(digits)
    tool.make_digits(tmp_path / 'b', train=2, val=1, seed=4)
    name = 'train/00000.png'
    assert (tmp_path / 'b' / name).read_bytes() != (digits / name).read_bytes()


def test_made_once(tmp_path):
    assert tool.make_digits(tmp_path, train=2, val=1)
    assert not tool.make_digits(tmp_path, train=2, val=1)
    assert tool.make_digits(tmp_path, train=2, val=1, force=True)
    (tmp_path / 'train' / '00001.png').unlink()
    assert tool.make_digits(tmp_path, train=2, val=1)
    assert tool.make_digits(tmp_path, train=1, val=1)
    assert len(list((tmp_path / 'train').iterdir())) == 1


@pytest.mark.parametrize('split', tool.SPLITS)
def test_boxes_match_masks(digits, split):
    data = read(digits, split)
    for annotation in data['annotations']:
        mask = mask_utils.decode(annotation['segmentation'])
        rows, cols = np.nonzero(mask)
        x, y, w, h = annotation['bbox']
        assert (cols.min(), rows.min()) == (x, y)
        assert (cols.max() + 1, rows.max() + 1) == (x + w, y + h)
        assert annotation['area'] == mask.sum() > 0


@pytest.mark.parametrize('split', tool.SPLITS)
def test_masks_do_not_overlap(digits, split):
    data = read(digits, split)
    for image in data['images']:
        masks = [
            mask_utils.decode(item['segmentation'])
            for item in data['annotations']
            if item['image_id'] == image['id']
        ]
        assert masks and np.sum(masks, axis=0).max() == 1


@pytest.mark.parametrize('split', tool.SPLITS)
def test_sizes(digits, split):
    data = read(digits, split)
    low, high = draw_digits.IMAGE_SIDES
    for image in data['images']:
        with Image.open(digits / split / image['file_name']) as opened:
            assert opened.size == (image['width'], image['height'])
            assert opened.mode == 'RGB'
        assert low <= min(image['width'], image['height'])
        assert max(image['width'], image['height']) <= high
    longer = [max(item['bbox'][2:]) for item in data['annotations']]
    # what hides a digit makes its box smaller
    assert max(longer) <= draw_digits.DIGIT_SIDES[1] + 1
    assert np.median(longer) > draw_digits.DIGIT_SIDES[0] * 2


@pytest.mark.parametrize('split', tool.SPLITS)
def test_all_classes(digits, split):
    data = read(digits, split)
    assert [c['name'] for c in data['categories']] == list('0123456789')
    found = {item['category_id'] for item in data['annotations']}
    assert found == set(range(10))


def test_labels_are_those_of_the_digits(digits):
    target = load_digits().target
    for split in tool.SPLITS:
        for item in read(digits, split)['annotations']:
            assert target[item['digit_sample']] == item['category_id']


def test_train_and_val_share_no_digit(digits):
    bank = draw_digits.load_digit_bank()
    train, val = (set(np.concatenate(bank[s]).tolist()) for s in tool.SPLITS)
    assert not train & val
    assert len(train) + len(val) == len(load_digits().target)
    for split, allowed in zip(tool.SPLITS, (train, val), strict=True):
        used = {i['digit_sample'] for i in read(digits, split)['annotations']}
        assert used <= allowed
