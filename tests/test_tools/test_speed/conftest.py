# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Two units of a tiny RetinaNet, reconstructed."""

import pytest

from mmdet_ptq.registry import PASSES
from tools.speed import reconstruct, steps


@pytest.fixture
def visit(tiny, tmp_path, monkeypatch):
    """Runs both chosen units; gives their records."""
    monkeypatch.chdir(tmp_path)

    def run(fits, iters=3):
        @PASSES.register_module(force=True)
        class Visited(steps.ReconstructChosen):
            trainer = fits

        return reconstruct.quantized(
            str(tiny.config['retinanet']),
            (64, 64),
            'cpu',
            reconstruct.quant_cfg(2, iters, Visited),
        ).records

    return run
