# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Graphs made by hand, and plans of them."""

from torch import nn

from mmdet_ptq.plan import make_plan
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.structures import LayerGraph, LayerNode, Op

U = 'UniformQuantizer'


BOTH = dict(match='*', weight=dict(type=U), act=dict(type=U))


def node(
    name,
    reads,
    roles=(),
    groups=1,
    ports=('input',),
    port_roles=None,
    params=1,
):
    """A layer that reads these values, one tuple a call."""
    calls = [
        Op(i, 'conv2d', name, '', tuple(values), (100 + i,))
        for i, values in enumerate(reads)
    ]
    return LayerNode(
        name,
        nn.Conv2d,
        calls,
        ports,
        frozenset(roles),
        {k: frozenset(v) for k, v in (port_roles or {}).items()},
        groups,
        params,
    )


def graph(*nodes, shared=None):
    layers = {n.name: n for n in nodes}
    if shared is None:
        shared = [[(n.name, p)] for n in nodes for p in n.ports]
    return LayerGraph([], {}, layers, {}, [], shared, [], [], ())


def plan(graph, *rules, bits='w4a6', uncovered=None):
    config = parse_quant_cfg(
        dict(
            rules=list(rules),
            passes=[dict(type='Observe')],
            **(dict(bits=bits) if bits else {}),
        )
    )
    return make_plan(config, graph, uncovered or {})
