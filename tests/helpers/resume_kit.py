# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A quantization that is stopped between two passes, and resumed."""

import pytest

from mmdet_ptq.calibration import Batches, ResumeStore
from mmdet_ptq.engine.quantize import run_quantization
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.passes import BasePass
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.registry import PASSES


def stopped_and_resumed(make, data, quant_cfg, behind, path):
    """Tensors of a run that was stopped behind a pass, and of a whole one.

    Args:
        make (Callable): Gives the float model.
        data (list[dict]): Calibration batches.
        quant_cfg (dict): With ``passes``.
        behind (str): Type of the pass.
        path (Path): Of the resume file.
    """

    class Stop(BasePass):
        def run(self, session):
            if stops:
                stops.pop()
                raise KeyboardInterrupt

    def run(resume=False):
        model = make()
        config = parse_quant_cfg(dict(quant_cfg, passes=passes))
        feed, store = Batches(model, data), ResumeStore(path, 'one')
        session = run_quantization(
            model, config, data[0], feed, store=store, resume=resume
        )
        return named_tensors(model), session.notes, session.edits

    kinds = [p['type'] for p in quant_cfg['passes']]
    at = kinds.index(behind) + 1
    passes = [*quant_cfg['passes'][:at], dict(type='Stop')]
    passes += quant_cfg['passes'][at:]
    stops = []
    PASSES.register_module(module=Stop)
    try:
        whole = run()
        stops.append(True)
        with pytest.raises(KeyboardInterrupt):
            run()
        return run(resume=True), whole
    finally:
        PASSES.module_dict.pop('Stop')
