# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A table, a picture, and a config of what was tried."""

import io
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from rich.console import Console

from mmdet_ptq.engine.auto.goal import Goal, Trial
from mmdet_ptq.engine.auto.outputs import (
    print_trials,
    words_of,
    write_outputs,
)

RULES = [dict(match=['a'], weight=dict(bits=8))]
BIG = Trial('uniform', 'w8a8', [], '', 0.0, 0.648, 24.0, 4e9, 10.0)
SMALL = Trial('gptq', 'w4a4', RULES, '', 0.004, 0.644, 12.41, 1.5e9, 30.0)


@pytest.fixture
def run(tmp_path, tiny):
    """What is left of a search."""
    return SimpleNamespace(
        whole=dict(mb=36.5, bops=9e9, metric='coco/bbox_mAP', value=0.648),
        options=SimpleNamespace(goal=Goal('max_drop', 0.005), verify_num=64),
        trials=[BIG, SMALL],
        runner=SimpleNamespace(
            work_dir=str(tmp_path),
            cfg=Config.fromfile(tiny.config['retinanet']),
        ),
        quant_cfg=lambda t: dict(recipe=t.recipe, bits=t.bits, rules=t.rules),
    )


def test_what_came_of_it(run):
    (words,) = words_of(run, SMALL, True)
    assert words == (
        'Chosen: gptq w4a4 mixed. 12.4 MB of 36.5, 34 %; 1.5 G BOPs of 9, '
        '17 %; coco/bbox_mAP 0.644 of 0.648 on 64 training images held out.'
    )
    (words,) = words_of(run, SMALL, False)
    assert 'cannot be reached with 2 detectors that were tried' in words
    assert 'Nearest comes gptq w4a4 mixed: 12.4 MB of 36.5, 34 %' in words


def test_files(run):
    page, config = write_outputs(run, SMALL, ['told'])
    text = page.read_text()
    assert 'chosen' in text and '<svg' in text
    written = Config.fromfile(config)
    assert written.quant_cfg.to_dict() == run.quant_cfg(SMALL)
    # the config of the run is left as it was
    assert 'quant_cfg' not in run.runner.cfg


def test_table(run):
    out = io.StringIO()
    print_trials(Console(file=out, width=80), run, SMALL)
    lines = [line.split() for line in out.getvalue().splitlines()]
    row = ['gptq', 'w4a4', 'mixed', 'chosen', '0.40', '12.410', '1.5', '30']
    assert row in lines
    assert ['uniform', 'w8a8', 'yes', '0.00', '24.000', '4', '10'] in lines
    # none keeps to a smaller loss
    run.options.goal = Goal('max_drop', -1.0)
    out = io.StringIO()
    print_trials(Console(file=out, width=80), run, SMALL)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ['gptq', 'w4a4', 'mixed', 'nearest', *row[4:]] in lines
