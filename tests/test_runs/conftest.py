# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""MMDetection's own tools."""

import json
import pickle
import runpy
import sys
from pathlib import Path

import mmdet
import pytest

TEST = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'


@pytest.fixture
def mmdet_test(monkeypatch, tmp_path):
    """MMDetection's unmodified tools/test.py: metrics and predictions."""
    count = [0]

    def run(config, checkpoint, *words):
        count[0] += 1
        work = tmp_path / f'mmdet_test_{count[0]}'
        out = tmp_path / f'out_{count[0]}.pkl'
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'test.py',
                str(config),
                str(checkpoint),
                '--work-dir',
                str(work),
                '--out',
                str(out),
                *words,
            ],
        )
        runpy.run_path(str(TEST), run_name='__main__')
        metrics = json.loads(next(work.glob('*/*.json')).read_text())
        return metrics, pickle.loads(out.read_bytes()), work

    return run
