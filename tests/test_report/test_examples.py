# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images for a report."""

import base64

import cv2
import numpy as np
from report_kit import boxes, row, scene

from mmdet_ptq.report.examples import SIDE, examples, picture


def test_the_worst_come_first():
    found = examples(scene(), scene(6.0), ('cat', 'dog'), count=3)
    # shifts of 0 and 6 are kept, from 12 on not; of equal ones the first
    assert [one['lost'] for one in found] == [2, 2, 1]
    first = found[0]
    assert [box[6] for box in first['float']] == ['kept', 'missed']
    assert [box[6] for box in first['quantized']] == ['kept', 'new']
    assert [box[4] for box in first['truth']] == ['cat', 'dog']
    # unsure boxes are not drawn
    assert all(box[5] >= 0.3 for box in first['float'] + first['quantized'])


def test_without_float_objects_are_compared_with():
    found = examples(None, scene(6.0), ('cat', 'dog'))[0]
    assert found['float'] is None
    assert [box[6] for box in found['truth']] == ['kept', 'missed']


def test_without_float_and_objects_there_is_none():
    assert examples(None, [row(0, boxes((0, 0, 5, 5, 0, 0.9)))], ()) == []


def test_a_picture_is_small(tmp_path):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.full((900, 600, 3), 200, np.uint8))
    data = np.frombuffer(base64.b64decode(picture(str(path))), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert max(image.shape) == SIDE and abs(int(image.mean()) - 200) < 3
    (found,) = examples(None, scene(count=1, path=str(path)), ())
    assert found['name'] == 'a.png' and found['picture']


def test_an_image_that_cannot_be_read_has_none(tmp_path):
    broken = tmp_path / 'a.png'
    broken.write_text('no image')
    assert picture(str(broken)) == picture(str(tmp_path / 'none')) == ''
    assert picture('') == ''
