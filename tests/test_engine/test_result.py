# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Parts of the result file."""

import json

from mmdet_ptq.engine.result import float_part


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
