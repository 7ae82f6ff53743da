# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Files of checkpoints."""

import hashlib

from mmdet_ptq.engine.checkpoint import sha256


def test_sha256_of_several_blocks(tmp_path):
    data = bytes(range(256)) * 10000
    (tmp_path / 'file').write_bytes(data)
    assert sha256(tmp_path / 'file') == hashlib.sha256(data).hexdigest()
