# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What several scales of one input cost, by hand."""

import pytest
import torch
from torch import nn

from mmdet_ptq.cost import cost_of, grouping_bops
from mmdet_ptq.layers import MatMul, convert
from mmdet_ptq.plan import attach
from mmdet_ptq.structures import LayerPlan, QuantPlan, QuantSpec

IGQ = 'InstanceGroupQuantizer'


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(384, 1536)
        self.second = nn.Linear(384, 8)
        self.conv = nn.Conv2d(1, 4, 1)
        self.matmul = MatMul()

    def forward(self, x):
        a, b = self.first(x), self.second(x)
        p = b.softmax(-1)[:, None]
        v = b.reshape(1, 1, 8, -1)
        return a, self.matmul(p, v), self.conv(x[:, None])


def surveyed(kit, **specs):
    """The net, its survey and a plan; what is not named stays float."""
    net = Net().eval()
    x = torch.rand(1, 197, 384)
    graph = kit.look(net, lambda: net(x))
    found = {n: dict.fromkeys(node.ports) for n, node in graph.layers.items()}
    for name, spec in specs.items():
        layer, _, port = name.partition('_')
        found[layer][port or 'input'] = spec
    groups = [
        [(n, p)] for n, acts in found.items() for p, s in acts.items() if s
    ]
    if {'first', 'second'} <= set(specs):
        groups = [[('first', 'input'), ('second', 'input')]]
    plan = QuantPlan(
        {n: LayerPlan(n, None, acts) for n, acts in found.items()}, groups
    )
    convert(net)
    attach(net, plan, {})
    return net, graph, plan


def test_sixteen_groups_add_about_what_the_paper_says(kit):
    spec = QuantSpec(IGQ, 6, dict(num_groups=16))
    found = grouping_bops(*surveyed(kit, first=spec))
    macs = 197 * 384 * 1536
    assert found == dict(
        extremes=2 * 197 * 384 * 32,
        assignment=384 * 16 * 2 * 32,
        partial_sums=197 * 1536 * 15 * 32,
    )
    assert sum(found.values()) / (macs * 6 * 6) == pytest.approx(
        0.036, abs=0.001
    )


def test_what_layers_read_together_is_looked_at_once(kit):
    spec = QuantSpec(IGQ, 6, dict(num_groups=8))
    found = grouping_bops(*surveyed(kit, first=spec, second=spec))
    assert found['extremes'] == 2 * 197 * 384 * 32
    assert found['partial_sums'] == 197 * (1536 + 8) * 7 * 32


def test_rows_of_a_softmax_have_no_partial_sums(kit):
    spec = QuantSpec(IGQ, 4, dict(num_groups=8, granularity='row'))
    found = grouping_bops(*surveyed(kit, matmul_a=spec))
    want = dict(extremes=197 * 8 * 32, assignment=197 * 8 * 32, partial_sums=0)
    assert found == want


def test_static_groups_have_partial_sums_alone(kit):
    spec = QuantSpec(
        'UniformQuantizer', 4, dict(granularity='group', group_size='1/8')
    )
    net, graph, plan = surveyed(kit, first=spec)
    sums = 197 * 1536 * 7 * 32
    want = dict(extremes=0, assignment=0, partial_sums=sums)
    assert grouping_bops(net, graph, plan) == want
    # and the total has them
    cost = cost_of(net, graph, plan)
    macs = sum(one['macs'] for one in cost['layers'].values())
    first = cost['layers']['first']['macs']
    products = (macs - first) * 32 * 32 + first * 32 * 4
    assert cost['grouping'] == want
    assert cost['bops']['quantized'] == products + sums


def test_heads_and_whole_tensors_cost_nothing(kit):
    heads = QuantSpec('UniformQuantizer', 4, dict(granularity='channel'))
    plain = QuantSpec('UniformQuantizer', 4)
    net = surveyed(kit, matmul_a=heads, first=plain, conv=plain)
    assert not any(grouping_bops(*net).values())


@pytest.mark.parametrize(
    ('port', 'axis', 'sums'),
    [('a', -1, 7), ('a', -2, 0), ('b', -2, 7), ('b', -1, 0), ('b', 1, 0)],
)
def test_a_product_adds_where_scales_differ_along_its_sum(
    kit, port, axis, sums
):
    """(1, 1, 197, 8) times (1, 1, 8, 197); eight groups of channels."""
    spec = QuantSpec(
        'UniformQuantizer', 4, dict(granularity='channel', axis=axis)
    )
    found = grouping_bops(*surveyed(kit, **{f'matmul_{port}': spec}))
    assert found['partial_sums'] == 197 * 197 * sums * 32


def test_grids_along_the_sum_of_both_inputs_end_together(kit):
    a = QuantSpec('UniformQuantizer', 4, dict(granularity='channel', axis=-1))
    b = QuantSpec('UniformQuantizer', 4, dict(granularity='channel', axis=-2))
    found = grouping_bops(*surveyed(kit, matmul_a=a, matmul_b=b))
    assert found['partial_sums'] == 197 * 197 * 7 * 32


def test_rows_of_both_inputs_of_a_product_have_no_partial_sums(kit):
    """A row is what is summed up; below 0 its lower end is looked for too."""
    spec = QuantSpec(IGQ, 4, dict(num_groups=4, granularity='row'))
    net, graph, plan = surveyed(kit, matmul_a=spec, matmul_b=spec)
    for low, port in ((0.0, 'a'), (-1.0, 'b')):
        q = net.matmul.act_quantizers[port]
        q.set_range(torch.full((4,), low), torch.arange(1.0, 5.0))
    # (1, 1, 197, 8) has 197 rows, and (1, 1, 8, 197) too
    numbers, rows = 197 * 8, 197
    want = dict(
        extremes=(1 + 2) * numbers * 32,
        assignment=(1 + 2) * rows * 4 * 32,
        partial_sums=0,
    )
    assert grouping_bops(net, graph, plan) == want
