# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grammar of ``quant_cfg`` and its checks."""

from .bits import Bits, parse_bits
from .calibration import Calibration
from .config import QuantConfig, parse_quant_cfg
from .inherit import replaced_rules
from .recipes import checked_keys, load_recipe, recipe_names
from .rules import (
    DEFAULT_QUANTIZER,
    PORT_ROLES,
    ROLES,
    check_rule,
    check_width,
    patterns_of,
)
from .scopes import SCOPES

__all__ = [
    'DEFAULT_QUANTIZER',
    'PORT_ROLES',
    'ROLES',
    'SCOPES',
    'Bits',
    'Calibration',
    'QuantConfig',
    'check_rule',
    'check_width',
    'checked_keys',
    'load_recipe',
    'parse_bits',
    'parse_quant_cfg',
    'patterns_of',
    'recipe_names',
    'replaced_rules',
]
