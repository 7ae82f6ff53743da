# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The report of a whole run, and runs whose report fails."""

import json
import logging
from types import SimpleNamespace

import pytest
from report_kit import harmless

from mmdet_ptq.engine import report as module
from mmdet_ptq.engine import run as run_module
from mmdet_ptq.engine.report import PredictionsHook
from mmdet_ptq.report.files import DATA, PAGE, RESULT

QUICK = ('--calib-num', 2, '--recipe', 'minmax', '--bits', 'w4a4')


@pytest.fixture
def runner():
    return SimpleNamespace(logger=logging.getLogger('report'))


def test_a_run_makes_a_report(ptq):
    run = ptq(*QUICK)
    assert run.code == 0, run.err
    data = json.loads((run.work / DATA).read_text())
    assert data['why'] == {} and data['started'] == run.result['started']
    # the same number as the evaluator's, taken apart
    (whole,) = (r for r in data['accuracy']['rows'] if r['group'] == 'all')
    for side in ('float', 'quantized'):
        expected = run.result[side]['coco/bbox_mAP']
        assert whole[side] == pytest.approx(expected, abs=6e-4)
    layers = {one['name']: one for one in data['layers']['layers']}
    assert set(layers) == set(run.result['cost']['layers'])
    assert 0 < layers['backbone.conv1']['sqnr'] < 100
    assert layers['backbone.conv1']['weights']['codes'] == 256
    text = (run.work / PAGE).read_text()
    seen = harmless(text)
    assert 'Nothing was gathered' not in text and 'could not' not in text
    assert f'--work-dir {run.work}' in seen.text['settings']
    assert 'mmdet-ptq quantize' in run.result['command']
    assert {'report: layers', 'report: boxes'} <= set(run.result['seconds'])


def test_a_run_that_was_stopped_has_the_float_test(ptq, monkeypatch):
    def stopped(*_):
        raise RuntimeError('stopped')

    with monkeypatch.context() as patch:
        patch.setattr(run_module, '_save', stopped)
        with pytest.raises(RuntimeError, match='stopped'):
            ptq(*QUICK)
    run = ptq(*QUICK, '--resume')
    assert run.code == 0, run.err
    data = json.loads((run.work / DATA).read_text())
    assert data['why'] == {}
    (whole,) = (r for r in data['accuracy']['rows'] if r['group'] == 'all')
    expected = run.result['float']['coco/bbox_mAP']
    assert whole['float'] == pytest.approx(expected, abs=6e-4)
    assert not list(run.work.glob('ptq_resume*'))


def test_without_a_report_and_the_same_artefact(ptq, tmp_path):
    run = ptq(*QUICK, '--no-float-eval')
    seen = harmless((run.work / PAGE).read_text())
    assert 'was not tested (--no-float-eval)' in seen.text['lost']
    assert 'AP' in seen.text['accuracy']
    digest = run.digest
    # the report of an earlier run goes, as it is of another artefact
    run = ptq(*QUICK, '--no-float-eval', '--no-report')
    assert run.code == 0 and run.digest == digest
    assert not (run.work / PAGE).exists() and not (run.work / DATA).exists()


def test_a_report_that_fails_costs_nothing(ptq, monkeypatch):
    def broken(*_):
        raise RuntimeError('no report today')

    for name in ('layer_table', 'row_of', 'gathered'):
        monkeypatch.setattr(module, name, broken)
    run = ptq(*QUICK, '--no-float-eval')
    assert run.code == 0 and run.result['quantized'] and run.digest
    for what in ('keeping predictions', 'comparing layers', 'making the rep'):
        assert f'{what}' in run.log, what
    assert run.log.count('failed: RuntimeError: no report today') == 3
    assert (run.work / RESULT).exists() and not (run.work / PAGE).exists()


def test_outputs_of_another_kind_are_said_once(runner, caplog):
    hook = PredictionsHook()
    for i in range(3):
        hook.after_test_iter(runner, i, None, [{}])
    assert 'outputs of the test (dict) have no pred_instances' in hook.problem
    assert len(caplog.records) == 1 and hook.rows == []
