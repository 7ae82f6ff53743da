# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tests on another device."""

import subprocess
import sys

import pytest
import torch

WORDS = [sys.executable, '-m', 'pytest', '-q', '--device', 'cuda']


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there():
    done = subprocess.run(
        [*WORDS, 'tests/test_rooms.py'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert '--device cuda: PyTorch sees no GPU here' in done.stderr


@pytest.mark.gpu
def test_only_what_can_runs_there():
    done = subprocess.run(
        [*WORDS, '-rs', 'tests/test_rooms.py'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.OK
    assert 'runs on a CPU only: leave out --device cuda' in done.stdout


def test_default_device_is_that_of_the_option(request):
    wanted = torch.device(request.config.getoption('--device'))
    assert torch.get_default_device().type == wanted.type
