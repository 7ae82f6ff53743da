# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the sentences under charts of AP say."""

from report_kit import Seen, data_of, result_of

from mmdet_ptq.report.files import Run
from mmdet_ptq.report.sections.accuracy import accuracy, metrics


def test_metrics_of_both_sides():
    text = Seen(metrics([Run('a', result_of())])).text['']
    assert 'coco/bbox_mAP' in text and '−0.050' in text
    # COCO says -1 where there is no such object
    assert '−1' not in text


def test_what_is_beyond_chance_is_named():
    text = Seen(accuracy([Run('a', result_of(), data_of())])).text['']
    assert 'beyond chance: dog.' in text
    data = data_of()
    for row in data['accuracy']['rows']:
        row['high'] = 1.0
    text = Seen(accuracy([Run('a', result_of(), data)])).text['']
    assert 'none is beyond chance' in text


def test_no_test_at_all():
    run = Run('a', result_of(float={}, quantized={}))
    assert 'there are no metrics' in accuracy([run])
