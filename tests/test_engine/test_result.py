# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Parts of the result file."""

import io
import json

import pytest
from mmengine.config import Config
from plan_kit import BOTH, graph, node, plan
from rich.console import Console

from mmdet_ptq.engine.machine import machine
from mmdet_ptq.engine.outputs import Outputs
from mmdet_ptq.engine.result import (
    Result,
    float_part,
    gpu_lines,
    left_float,
    print_units,
)
from mmdet_ptq.quant_cfg import parse_quant_cfg


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


def test_units_that_were_put_back_are_seen_on_a_narrow_terminal():
    """Names as long as those of DETR leave no column out."""
    file = io.StringIO()
    record = dict(learned=['AdaRound'], before=1.0, after=2.0, seconds=11.5)
    record['why'] = 'its loss rose'
    records = [
        dict(record, unit='decoder.layers.0.self_attn.attn.matmul_qk', kept=k)
        for k in (True, False)
    ]
    print_units(Console(file=file, width=60), records, [])
    words = file.getvalue().split()
    assert {'yes', 'no', 'kept', '11.5'} <= set(words)


def test_file_says_what_computed(tmp_path):
    quant = parse_quant_cfg(dict(recipe='minmax', bits='w8a8'))
    outputs = Outputs(tmp_path, 'quantized.pth', 'config.py')
    Result(outputs, Config(), quant, 'a.pth', '0', 'f', False).write()
    found = json.loads(outputs.result.read_text())['machine']
    assert found == machine() and found['cpu'] and found['instructions']


@pytest.mark.parametrize(
    ('scope', 'title'),
    [('', 'minmax w8a8'), ('repq_det', 'minmax w8a8 repq_det')],
)
def test_a_scope_is_told(tmp_path, scope, title):
    cfg = dict(recipe='minmax', bits='w8a8', scope=scope)
    outputs = Outputs(tmp_path, 'quantized.pth', 'config.py')
    quant = parse_quant_cfg(cfg)
    result = Result(outputs, Config(), quant, 'a.pth', '0', 'f', False)
    assert (result.to_dict()['scope'], result.title) == (scope, title)


def test_memory_of_a_gpu_is_told_where_there_is_one(tmp_path):
    quant = parse_quant_cfg(dict(recipe='minmax', bits='w8a8'))
    outputs = Outputs(tmp_path, 'quantized.pth', 'config.py')
    result = Result(outputs, Config(), quant, 'a.pth', '0', 'f', False)
    found = result.to_dict()
    assert 'peak_gpu_mb' not in found and gpu_lines(found) == []
    found = dict(machine=dict(gpu='Card 1'), peak_gpu_mb=12345.6)
    assert gpu_lines(found) == ['Card 1: peak memory 12,346 MiB']
