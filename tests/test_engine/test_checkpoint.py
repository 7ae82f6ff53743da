# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Files of checkpoints."""

import hashlib
import io
import tarfile

import pytest
import torch
from torch import nn

from mmdet_ptq.engine.checkpoint import read_checkpoint, sha256
from mmdet_ptq.errors import CheckpointError


def test_sha256_of_several_blocks(tmp_path):
    data = bytes(range(256)) * 10000
    (tmp_path / 'file').write_bytes(data)
    assert sha256(tmp_path / 'file') == hashlib.sha256(data).hexdigest()


def scripted():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def legacy_tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    return file.getvalue()


@pytest.mark.parametrize(
    'data',
    [
        b'<html>404: not found</html>',
        b'\x80\x02}q\x00.',
        b'',
        scripted,
        legacy_tar,
    ],
)
def test_no_advice_to_load_what_can_run_code(tmp_path, data):
    """PyTorch's own messages give it."""
    path = tmp_path / 'broken.pth'
    path.write_bytes(data() if callable(data) else data)
    with pytest.raises(CheckpointError, match='Get the file again') as raised:
        read_checkpoint(path)
    message = str(raised.value)
    assert 'weights_only' not in message and 'PyTorch' not in message
    assert '\n' not in message


def test_a_config_in_its_place_is_no_checkpoint(tmp_path):
    """Its first letter is an instruction of a pickle."""
    path = tmp_path / 'config.py'
    path.write_text('custom_imports = dict(imports=[])\nmodel = dict()\n')
    with pytest.raises(CheckpointError, match='corrupt or no checkpoint') as e:
        read_checkpoint(path)
    assert 'trust' not in str(e.value)
