# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Parts of the result file."""

import json

from mmengine.config import Config

from mmdet_ptq.engine.machine import machine
from mmdet_ptq.engine.result import Result, float_part, row_of
from mmdet_ptq.quant_cfg import parse_quant_cfg


def test_rows_of_the_table():
    assert row_of('mAP', 0.5, 0.25, 3) == ('mAP', '0.500', '0.250', '-0.250')
    assert row_of('mAP', 0.1, 0.3, 2) == ('mAP', '0.10', '0.30', '+0.20')
    assert row_of('mAP', None, 0.3, 1) == ('mAP', '-', '0.3', '-')


def test_float_metrics_of_an_earlier_run(tmp_path):
    path = tmp_path / 'result.json'
    assert float_part(path, 'a') is None
    metrics = dict(mAP=0.5)
    old = dict(fingerprint='a', float=metrics)
    old['seconds'] = {'float evaluation': 3.5}
    path.write_text(json.dumps(old))
    assert float_part(path, 'a') == (metrics, 3.5)
    assert float_part(path, 'b') is None
    for broken in (dict(old, float={}), dict(fingerprint='a'), [], 'what'):
        path.write_text(json.dumps(broken))
        assert float_part(path, 'a') is None
    path.write_text('{')
    assert float_part(path, 'a') is None


def test_file_says_what_computed(tmp_path):
    quant = parse_quant_cfg(dict(recipe='minmax', bits='w8a8'))
    path = tmp_path / 'result.json'
    Result(path, Config(), quant, 'a.pth', '0', 'f', False).write()
    found = json.loads(path.read_text())['machine']
    assert found == machine() and found['cpu'] and found['instructions']
