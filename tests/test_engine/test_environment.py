# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Names of ranks, devices, streams, folders that cannot be written to."""

import io
import os

import pytest
import torch

from mmdet_ptq.engine.environment import (
    check_device,
    check_writable,
    name_ranks,
    tolerate,
)
from mmdet_ptq.errors import PTQError

NAMES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.fixture
def variables(monkeypatch):
    """Sets variables and takes those away that ranks are named by."""

    def put(**given):
        for name in NAMES:
            # so that it is put back, whoever sets it
            monkeypatch.setenv(name, '')
            del os.environ[name]
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return put


def named():
    return [os.environ.get(name) for name in NAMES]


@pytest.mark.parametrize(
    ('launcher', 'given', 'expected'),
    [
        (
            'slurm',
            dict(SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_LOCALID='1'),
            ['3', '4', '1', 'first', '29500'],
        ),
        (
            'mpi',
            dict(
                OMPI_COMM_WORLD_RANK='3',
                OMPI_COMM_WORLD_SIZE='4',
                OMPI_COMM_WORLD_LOCAL_RANK='1',
            ),
            ['3', '4', '1', '127.0.0.1', '29500'],
        ),
        ('pytorch', {}, [None] * 5),
    ],
)
def test_ranks(variables, monkeypatch, tmp_path, launcher, given, expected):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$3" = nodes ] && echo first; echo b\n')
    scontrol.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ['PATH']])
    variables(PATH=path, SLURM_NODELIST='nodes', **given)
    name_ranks(launcher)
    assert named() == expected


def test_addresses_that_are_given_stay(variables):
    ranks = {
        f'OMPI_COMM_WORLD_{name}': '0'
        for name in ('RANK', 'SIZE', 'LOCAL_RANK')
    }
    variables(**ranks, MASTER_ADDR='here', MASTER_PORT='7')
    name_ranks('mpi')
    assert named() == ['0', '0', '0', 'here', '7']


def test_a_folder_is_made_and_left_empty(tmp_path):
    check_writable(str(tmp_path / 'a' / 'b'))
    assert list((tmp_path / 'a' / 'b').iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PTQError, match=r'file is not writable: .*--work-dir'):
        check_writable(str(tmp_path / 'file'))


@pytest.mark.parametrize('wanted', ['0', 'gpu', 'meta', 'cuda:99', 'cpu:x'])
def test_devices_that_are_none(wanted):
    with pytest.raises(PTQError, match=r'this machine has cpu') as raised:
        check_device(wanted)
    assert repr(wanted) in str(raised.value)
    assert '\n' not in str(raised.value)


def test_devices_there_are():
    check_device('cpu')
    if torch.cuda.is_available():
        check_device('cuda')
    else:
        with pytest.raises(PTQError, match='has cpu '):
            check_device('cuda')


def test_streams_write_what_they_can():
    strict = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    chosen = io.TextIOWrapper(
        io.BytesIO(), encoding='ascii', errors='xmlcharrefreplace'
    )
    utf8 = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
    tolerate(strict, chosen, utf8, io.StringIO())
    for stream in (strict, chosen, utf8):
        stream.write('a ÷ b')
        stream.flush()
    assert strict.buffer.getvalue() == b'a ? b'
    assert chosen.buffer.getvalue() == b'a &#247; b'
    assert utf8.buffer.getvalue() == 'a ÷ b'.encode()
