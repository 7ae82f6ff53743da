# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A plan as plain JSON types, and back."""

import json
from dataclasses import asdict

from ..structures import LayerPlan, QuantPlan, QuantSpec


def plan_to_dict(plan: QuantPlan) -> dict:
    """A plan as plain JSON types; :func:`plan_of` reads it back."""
    return json.loads(
        json.dumps(
            dict(
                layers={n: asdict(p) for n, p in plan.layers.items()},
                groups=plan.groups,
                uncovered=plan.uncovered,
            )
        )
    )


def plan_of(manifest: dict) -> QuantPlan:
    """Reads the plan out of a manifest."""

    def spec(found: dict | None) -> QuantSpec | None:
        return QuantSpec(**found) if found else None

    layers = {
        name: LayerPlan(
            name,
            spec(p['weight']),
            {port: spec(s) for port, s in p['acts'].items()},
            p['why_float'],
        )
        for name, p in manifest['layers'].items()
    }
    groups = [[(n, p) for n, p in group] for group in manifest['groups']]
    return QuantPlan(layers, groups, manifest['uncovered'])
