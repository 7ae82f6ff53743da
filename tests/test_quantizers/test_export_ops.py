# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers in graphs: one operation each, and right at every size."""

import threading
import warnings

import pytest
import torch
from promises import FACTORIES, fit
from seeded import seeded
from torch import nn
from torch.nn import functional as F

from mmdet_ptq.context import forward_context
from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import (
    FitsTensor,
    GroupEncoding,
    LLAQuantizer,
    SubsetQuantizer,
    UniformEncoding,
    UniformQuantizer,
    export_mode,
)
from mmdet_ptq.quantizers.export_ops import (
    exporting,
    fields,
    quantize_dequantize_op,
    table_lookup_op,
)

WEIGHTS = {
    'channel': lambda: UniformQuantizer(
        4, granularity='channel', role='weight'
    ),
    'group': lambda: UniformQuantizer(
        4, True, granularity='group', group_size=9, role='weight'
    ),
    'llaq': lambda: LLAQuantizer(4),
    'subset': lambda: SubsetQuantizer(4),
}


class Net(nn.Module):
    """Two convolutions; the second input has a range for each level."""

    def __init__(self, weight, learn=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 4, 3, stride=2)
        self.inputs = nn.ModuleList(
            [UniformQuantizer(4), UniformQuantizer(8, per_level=True)]
        )
        self.inputs[0].set_range(torch.tensor([-1.0]), torch.tensor([2.0]))
        self.inputs[1].set_range(
            torch.zeros(2, 1), torch.tensor([[9.0], [2.0]])
        )
        self.weights = nn.ModuleList([WEIGHTS[weight]() for _ in range(2)])
        for q, conv in zip(
            self.weights, (self.first, self.second), strict=True
        ):
            if isinstance(q, FitsTensor):
                q.fit(conv.weight)
            else:
                fit(q, conv.weight.detach())
        if learn:
            for q in self.inputs:
                q.learn_step()

    def forward(self, x):
        w = self.weights[0](self.first.weight)
        x = F.conv2d(self.inputs[0](x), w, self.first.bias, padding=1).relu()
        w = self.weights[1](self.second.weight)
        return F.conv2d(self.inputs[1](x, 1), w, self.second.bias, stride=2)


def images():
    generator = seeded(1)
    return [
        torch.randn(1, 3, size, size + 16, generator=generator)
        for size in (64, 96)
    ]


def operations(names):
    return sum('mmdet_ptq' in name for name in names)


modes = pytest.mark.parametrize('grad', [False, True], ids=['no_grad', 'grad'])
weights = pytest.mark.parametrize('weight', WEIGHTS)


@weights
@modes
@pytest.mark.parametrize('learn', [False, True])
def test_traced_at_one_size_runs_at_another(weight, grad, learn):
    model, (small, large) = Net(weight, learn), images()
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter('error', torch.jit.TracerWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        traced = torch.jit.trace(model, small, check_trace=False)
        for x in (small, large):
            assert torch.equal(traced(x), model(x))
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert operations(kinds) == 4


@weights
@modes
@pytest.mark.parametrize('strict', [False, True])
def test_exported_with_dynamic_sizes(weight, grad, strict):
    model, (small, large) = Net(weight), images()
    sizes = {i: torch.export.Dim(f'd{i}', min=8, max=512) for i in (2, 3)}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(
            model, (small,), dynamic_shapes=(sizes,), strict=strict
        )
        found = program.module()
        for x in (small, large):
            assert torch.equal(found(x), model(x))
    calls = [n for n in program.graph.nodes if n.op == 'call_function']
    assert operations(str(n.target) for n in calls) == 4
    if weight in ('channel', 'group'):
        # nothing else but the two layers, and the choice of a level
        names = {str(n.target) for n in calls}
        assert names == {
            'aten.conv2d.default',
            'aten.relu.default',
            'aten.select.int',
            'mmdet_ptq.quantize_dequantize.default',
        }


def test_an_operation_carries_its_encoding():
    model, (small, _) = Net('channel'), images()
    program = torch.export.export(model, (small,))
    call = next(
        n
        for n in program.graph.nodes
        if 'mmdet_ptq' in str(n.target) and 'channel' in n.args
    )
    names = [str(a) for a in call.args[:3]]
    assert ['weight' in n for n in names] == [True] * 3
    assert 'scale' in names[1] and 'zero_point' in names[2]
    assert call.args[3:] == ('channel', 0, None, False, 0, 15)


def keeps_the_rules(make, change=lambda x: x):
    """PyTorch's own check of an operation, on one input."""
    x = torch.randn(2, 6, 4, 4)
    q = fit(make(4), x)
    e, rest, y = q.encoding(x), fields(q.granularity), change(x)
    if isinstance(e, GroupEncoding):  # its parts have operations, it has none
        return
    if isinstance(e, UniformEncoding):
        args = y, e.scale, e.zero_point, *rest, e.qmin, e.qmax
        torch.library.opcheck(quantize_dequantize_op, args)
    else:
        args = y, e.table, e.bounds, *rest
        torch.library.opcheck(table_lookup_op, args)


@pytest.mark.parametrize('make', FACTORIES.values(), ids=FACTORIES)
def test_operations_keep_the_rules_of_torch(make):
    keeps_the_rules(make)


@pytest.mark.parametrize('name', ['uniform-aff-act-channel', 'llaq-channel'])
@pytest.mark.parametrize(
    'change',
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: torch.stack([x, x], -1)[..., 0],
        torch.Tensor.half,
        lambda x: x[..., :0],
    ],
    ids=['channels last', 'gaps', 'half', 'empty'],
)
def test_operations_keep_the_rules_for_any_layout(name, change):
    keeps_the_rules(FACTORIES[name], change)


UNIFORM = {n: m for n, m in FACTORIES.items() if n.startswith('uniform')}


@pytest.mark.parametrize('make', UNIFORM.values(), ids=UNIFORM)
def test_gradients_are_those_of_the_eager_form(make):
    x = torch.randn(2, 6, 4, 4)
    q = fit(make(4), x, 0.5)
    q.learn_step()
    slopes = torch.randn_like(x)
    found = []
    for exported in (False, True):
        y = x.clone().requires_grad_()
        q.scale.grad = None
        if exported:
            with export_mode():
                out = q(y)
            assert 'UniformFunction' not in str(out.grad_fn)
        else:
            out = q(y)
        (out * slopes).sum().backward()
        found.append((out.detach(), y.grad, q.scale.grad))
    for eager, single in zip(*found, strict=True):
        assert torch.equal(eager, single)


def test_nan_is_not_hidden():
    for make in (UniformQuantizer, LLAQuantizer, SubsetQuantizer):
        q = make(4, granularity='tensor')
        q.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
        with export_mode():
            y = q(torch.tensor([float('nan'), 0.3]))
        assert y.isnan().tolist() == [True, False]


def test_mode_belongs_to_its_thread():
    assert not exporting()
    seen = []
    with export_mode():
        assert exporting()
        with export_mode():
            pass
        assert exporting()
        thread = threading.Thread(target=lambda: seen.append(exporting()))
        thread.start()
        thread.join()
    assert seen == [False] and not exporting()
    with pytest.raises(KeyError), export_mode():
        raise KeyError
    assert not exporting()


class Head(nn.Module):
    """Two convolutions that read the same map, on two pyramid levels."""

    def __init__(self):
        super().__init__()
        self.cls, self.reg = (nn.Conv2d(4, 2, 1) for _ in range(2))

    def forward(self, maps):
        return [self.cls(x) + self.reg(x) for x in maps]


@pytest.mark.parametrize('strict', [False, True])
def test_levels_of_a_head_are_its_own_in_a_graph(strict):
    """Exporters run new copies of modules that share another."""
    head = Head().eval()
    convert(head)
    shared = UniformQuantizer(8, per_level=True)
    shared.set_range(torch.zeros(2, 1), torch.tensor([[9.0], [0.1]]))
    for layer in (head.cls, head.reg):
        layer.attach(acts=dict(input=shared), levels=2)
    maps = [torch.rand(1, 4, 8, 8), 0.1 * torch.rand(1, 4, 4, 4)]
    with torch.no_grad():
        with forward_context():
            expected = head(maps)
        with forward_context(), export_mode():
            graph = torch.export.export(head, (maps,), strict=strict)
        found = graph.module()(maps)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
