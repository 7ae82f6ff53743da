# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules applied to a graph, and quantizers attached as they say."""

from .attach import attach, build_quantizer, check_plan
from .make import check_globs, make_plan, unmatched_rules
from .manifest import plan_of, plan_to_dict
from .replace import regroup, replace, replace_group
from .rules import hits

__all__ = [
    'attach',
    'build_quantizer',
    'check_globs',
    'check_plan',
    'hits',
    'make_plan',
    'plan_of',
    'plan_to_dict',
    'regroup',
    'replace',
    'replace_group',
    'unmatched_rules',
]
