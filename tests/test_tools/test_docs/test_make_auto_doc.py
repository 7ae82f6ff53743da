# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the page of auto mode says of a search."""

import json

import pytest

from tools.docs.make_auto_doc import main, row


def _trial(bits, drop, bops, scope=''):
    return dict(
        recipe='uniform',
        bits=bits,
        scope=scope,
        drop=drop,
        bops=bops,
        seconds=90.0,
    )


def _search(folder, drops, title='fewest with at most 0.5 points less'):
    trials = [
        _trial('w8a8', 0.001, 4e10),
        _trial('w8a8', drops[0], 3e10, 'first_last_8'),
        _trial('w6a6', drops[1], 1e10, 'first_last_8'),
    ]
    auto = dict(
        about=dict(title=title, config='configs/digits/detr_digits.py'),
        float=dict(metric='coco/bbox_mAP', value=0.5),
        trials={str(i): t for i, t in enumerate(trials)},
    )
    (folder / 'auto.json').write_text(json.dumps(auto))
    result = {
        'float': {'coco/bbox_mAP': 0.5},
        'quantized': {'coco/bbox_mAP': 0.488},
        'seconds': {'calibration': 10.0, 'quantized evaluation': 20.0},
    }
    (folder / 'ptq_result.json').write_text(json.dumps(result))


def test_by_hand(tmp_path):
    _search(tmp_path, (0.005, 0.03))
    want = ['detr_digits', '0.5', 'uniform w8a8 first_last_8', '0.5', '1.2']
    assert row(tmp_path) == [*want, '40.0', '30.0', '25%', '3', '5']


def test_a_goal_that_was_not_reached(tmp_path):
    _search(tmp_path, (0.03, 0.05), title='at most 0 points less')
    found = row(tmp_path)
    assert found[2:5] == ['none; nearest: uniform w8a8', '0.1', '']


def test_another_goal_is_refused(tmp_path):
    _search(tmp_path, (0.0, 0.0), title='best within 2 MB')
    with pytest.raises(ValueError, match='not a search with --max-drop'):
        row(tmp_path)


def test_page(tmp_path):
    _search(tmp_path, (0.005, 0.03))
    assert main([str(tmp_path), '--out', str(tmp_path / 'auto.md')]) == 0
    text = (tmp_path / 'auto.md').read_text()
    assert '| detr_digits | 0.5 | uniform w8a8 first_last_8 |' in text
