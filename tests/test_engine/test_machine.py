# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Names of what computes."""

import os
import platform

import pytest
import torch

from mmdet_ptq.engine.machine import (
    cpu_model,
    gpu_memory,
    machine,
    machine_line,
)

INFO = (
    'processor\t: 0\nvendor_id\t: GenuineIntel\n'
    'model name\t: Xeon: fast @ 2.60GHz\nflags\t: fpu\n\n'
    'processor\t: 1\nmodel name\t: other\n'
)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (INFO, 'Xeon: fast @ 2.60GHz'),
        # as on ARM
        ('processor\t: 0\nFeatures\t: fp\nHardware\t: Board 3\n', 'Board 3'),
        ('model name\t:\n', platform.processor() or platform.machine()),
        (None, platform.processor() or platform.machine()),
    ],
)
def test_model(tmp_path, text, expected):
    path = tmp_path / 'cpuinfo'
    if text is not None:
        path.write_text(text)
    assert cpu_model(path) == expected


def test_machine():
    found = machine()
    assert found['cpu'] == cpu_model() != ''
    assert found['instructions'] == torch.backends.cpu.get_cpu_capability()
    assert found['cores'] == os.cpu_count()
    assert found['threads'] == torch.get_num_threads()
    assert 'gpu' not in found
    line = machine_line()
    for part in ('cpu', 'instructions'):
        assert found[part] in line
    assert f', {os.cpu_count()} cores, ' in line
    assert line.endswith(f'torch {torch.__version__}')


def test_a_cpu_has_no_memory_of_a_gpu():
    assert gpu_memory('cpu') == {}


@pytest.mark.gpu
def test_memory_of_a_gpu():
    before = torch.cuda.max_memory_allocated() / 2**20
    held = torch.zeros(64 << 20, dtype=torch.uint8, device='cuda')
    peak = gpu_memory('cuda')['peak_gpu_mb']
    assert peak >= max(64, before - 0.1)
    del held
    assert gpu_memory('cuda')['peak_gpu_mb'] == peak


@pytest.mark.gpu
def test_gpu():
    name = torch.cuda.get_device_name(0)
    assert machine('cuda:0')['gpu'] == name and name in machine_line('cuda')
