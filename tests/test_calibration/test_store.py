# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Files that are whole, or those that were there before."""

import os
import subprocess
import sys

import pytest
import torch

from mmdet_ptq.calibration import ResumeStore
from mmdet_ptq.calibration.store import write_atomic
from mmdet_ptq.errors import PTQError


def test_file_size_limit(tmp_path, environment):
    """The system cuts the file off."""
    path = tmp_path / 'x.pth'
    write_atomic(dict(a=torch.zeros(10)), path)
    before = path.read_bytes()
    code = (
        'import resource, torch, sys\n'
        'from mmdet_ptq.calibration.store import write_atomic\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n'
        'try:\n'
        '    write_atomic(dict(a=torch.zeros(1000000)), sys.argv[1])\n'
        'except Exception as error:\n'
        '    print(type(error).__name__, error)\n'
    )
    run = subprocess.run(
        [sys.executable, '-c', code, str(path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith('PTQError cannot save'), run.stderr[-500:]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['x.pth']


def test_store_of_another_run(tmp_path):
    ResumeStore(tmp_path / 'a.pth', 'one').save(dict(done=1))
    assert ResumeStore(tmp_path / 'a.pth', 'one').load() == dict(done=1)
    assert ResumeStore(tmp_path / 'a.pth', 'two').load() is None
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']


def test_progress_that_cannot_be_read(tmp_path):
    (tmp_path / 'a.pth').write_text('what')
    with pytest.raises(PTQError, match=r'(?s)a\.pth.*without --resume'):
        ResumeStore(tmp_path / 'a.pth', 'one').load()


def test_a_cleared_store_is_empty(tmp_path):
    store = ResumeStore(tmp_path / 'a.pth', 'one')
    store.clear()
    store.save(dict(done=1))
    store.clear()
    assert store.load() is None and not list(tmp_path.iterdir())
