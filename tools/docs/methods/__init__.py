# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Pictures of the methods, one function each."""

from collections.abc import Callable

from matplotlib.figure import Figure

from .channels import fq_vit, group_static, igq_vit, repq_vit
from .grids import (
    adalog,
    apq_vit,
    gptq_codebook,
    minmax,
    noisyquant,
    ptq4vit,
    ptq_for_vit,
    q_yolo,
    subsetq,
    uniform,
)
from .learning import (
    adaquant,
    adaround,
    brecq,
    det_ptq,
    lapq,
    pd_quant,
    qdrop,
    reg_ptq,
)
from .structure import f_lbq, gptq, gptq_attention

DRAWINGS: tuple[Callable[[], Figure], ...] = (
    *(minmax, uniform, q_yolo, lapq, det_ptq),
    *(adaround, adaquant, brecq, qdrop, pd_quant, subsetq, reg_ptq),
    *(gptq, gptq_codebook, gptq_attention),
    *(ptq_for_vit, ptq4vit, apq_vit, fq_vit, repq_vit, noisyquant),
    *(adalog, igq_vit, group_static, f_lbq),
)
#: a picture for each method, by the name of its recipe
PICTURES = {one.__name__: one for one in DRAWINGS}

__all__ = ['PICTURES']
