# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .bits import Bits, parse_bits
from .config import (
    Calibration,
    QuantConfig,
    load_recipe,
    parse_quant_cfg,
    recipe_names,
)
from .plan import check_globs, make_plan

__all__ = [
    'Bits',
    'Calibration',
    'QuantConfig',
    'check_globs',
    'load_recipe',
    'make_plan',
    'parse_bits',
    'parse_quant_cfg',
    'recipe_names',
]
