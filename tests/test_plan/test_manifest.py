# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A plan written down and read back."""

import json

from mmdet_ptq.plan.manifest import plan_of, plan_to_dict
from mmdet_ptq.structures import LayerPlan, QuantPlan, QuantSpec


def test_a_plan_comes_back():
    weight = QuantSpec('UniformQuantizer', 3, dict(granularity='channel'))
    act = QuantSpec('UniformQuantizer', 5)
    plan = QuantPlan(
        dict(
            conv=LayerPlan('conv', weight, dict(input=act)),
            product=LayerPlan('product', None, dict(a=act, b=None)),
            out=LayerPlan('out', None, dict(input=None), 'rule 3 skips it'),
        ),
        [[('conv', 'input'), ('product', 'a')]],
        dict(lstm='no twin covers it'),
    )
    found = plan_to_dict(plan)
    assert json.loads(json.dumps(found)) == found
    assert plan_of(found) == plan
    assert list(plan_of(found).layers) == list(plan.layers)
