# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Parts of the result file."""

import json

from plan_kit import BOTH, graph, node, plan

from mmdet_ptq.engine.result import float_part, left_float


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


def test_everything_that_stays_float_has_a_reason():
    found = graph(node('a', [(0,)]), node('b', [(1,)]))
    found.uncalled = ['c', 'd']
    found.borrowed = dict(c='weight used without calling the layer')
    made = plan(
        found,
        BOTH,
        dict(match='b', skip=True),
        uncovered=dict(e='multiplies outside of layers (einsum)'),
    )
    assert left_float(made, found) == [
        dict(name='b', why='rule b: skip'),
        dict(name='c', why='weight used without calling the layer'),
        dict(name='d', why='not called in the survey'),
        dict(name='e', why='multiplies outside of layers (einsum)'),
    ]
