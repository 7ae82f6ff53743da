# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import weakref

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import deform_conv2d, nms, roi_align
from mmcv.ops.roi_align import RoIAlignFunction
from mmengine.structures import InstanceData
from torch import nn


class Net(nn.Module):
    """One conv and a body given as a function."""

    def __init__(self, body):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def names(graph):
    return [op.name for op in graph.ops]


def test_expected_graph(kit):

    def body(net, x):
        y = net.conv(x)
        return {'out': [net.conv2(F.relu(y) + 1), (y.flatten(1), None)]}

    graph = kit.look(Net(body))
    assert names(graph) == ['Conv2d', 'relu', 'add', 'Conv2d', 'flatten']
    conv, relu, add, conv2, flat = graph.ops
    assert [op.module for op in graph.ops] == ['conv', '', '', 'conv2', '']
    assert relu.inputs == flat.inputs == conv.outputs
    assert add.inputs == relu.outputs and conv2.inputs == add.outputs
    assert graph.outputs == (*conv2.outputs, *flat.outputs)
    image = graph.values[conv.inputs[0]]
    assert image.is_input and image.shape == (1, 3, 16, 16)
    assert [v.id for v in graph.values.values() if v.is_input] == [image.id]
    assert graph.values[flat.outputs[0]].producer == flat.index
    assert list(graph.layers) == ['conv', 'conv2']
    assert graph.layers['conv'].params == 3 * 4 * 9 + 4
    assert graph.layers['conv'].cls is nn.Conv2d
    assert graph.uncalled == []


def test_uncalled_and_called_twice(kit):
    graph = kit.look(
        Net(lambda net, x: [net.conv(x), net.conv(x[..., ::2, ::2])])
    )
    assert len(graph.layers['conv'].calls) == 2
    assert graph.uncalled == ['conv2']


def test_inputs_given_by_name_are_in_their_order(kit):

    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.matmul = nn.Conv2d(3, 4, 1), kit.MatMul()

        def forward(self, x):
            y = self.conv(input=x)
            return self.matmul(b=y.transpose(-2, -1), a=y)

    graph = kit.look(Products())
    conv, turned, product = graph.ops
    assert graph.values[conv.inputs[0]].is_input
    assert product.inputs == (*conv.outputs, *turned.outputs)


def test_inplace_relu_makes_a_new_value(kit):

    def body(net, x):
        y = net.conv(x)
        net.relu(y)
        return net.conv2(y)

    conv, relu, conv2 = kit.look(Net(body)).ops
    assert relu.name == 'ReLU' and relu.inputs == conv.outputs
    assert relu.outputs != conv.outputs
    assert conv2.inputs == relu.outputs


@pytest.mark.parametrize(
    'write, name',
    [
        (lambda y, z: y.add_(z), 'add'),
        (lambda y, z: y.__iadd__(z), 'add'),
        (lambda y, z: y.__setitem__(slice(None), z), 'setitem'),
        (lambda y, z: y.copy_(z), 'copy'),
        (lambda y, z: torch.mul(y, z, out=y), 'mul'),
    ],
)
def test_writes_relabel_the_same_tensor(kit, write, name):

    def body(net, x):
        y, z = net.conv(x), net.conv(x + 1)
        write(y, z)
        return net.conv2(y)

    graph = kit.look(Net(body))
    op, last = graph.ops[-2:]
    assert op.name == name and last.inputs == op.outputs
    assert graph.ops[0].outputs[0] in op.inputs
    assert graph.ops[2].outputs[0] in op.inputs


def test_write_into_a_view_reaches_its_base(kit):

    def body(net, x):
        y = net.conv(x)
        y[:, :2].sigmoid_()
        return net.conv2(y)

    conv, item, sigmoid, conv2 = kit.look(Net(body)).ops
    assert sigmoid.name == 'sigmoid'
    assert set(sigmoid.inputs) == {*item.outputs, *conv.outputs}
    assert conv2.inputs[0] in sigmoid.outputs


def test_identities_are_no_ops(kit):
    body = lambda net, x: net.conv2(  # noqa: E731
        net.drop(F.dropout(net.conv(x), training=False)).contiguous()
    )
    conv, conv2 = kit.look(Net(body)).ops
    assert conv2.inputs == conv.outputs


def test_constants_and_shapes_are_left_out(kit):

    def body(net, x):
        y = net.conv(x)
        grid = torch.arange(y.shape[-1]).float() * 2
        return y + grid + torch.zeros_like(y).exp()

    graph = kit.look(Net(body))
    assert names(graph) == ['Conv2d', 'add', 'add']
    assert all(
        graph.values[op.inputs[1]].producer == -1 for op in graph.ops[1:]
    )


def test_ops_of_extensions_are_seen(kit):
    weight = torch.rand(4, 4, 3, 3)

    def body(net, x):
        y = net.conv(x)
        boxes = y[0, 0, :2, :4].abs().cumsum(1)
        rois = torch.cat([y.new_zeros(2, 1), boxes], 1)
        nms(rois[:, 1:], rois[:, 1], 0.5)
        offset = y.mean() + y.new_zeros(1, 18, 16, 16)
        return (
            roi_align(y, rois, 7),
            deform_conv2d(y, offset, weight, 1, 1, 1, 1, 1),
        )

    graph = kit.look(Net(body))
    by_name = {op.name: op for op in graph.ops}
    conv = graph.ops[0].outputs[0]
    assert by_name['RoIAlignFunction'].inputs[0] == conv
    assert graph.values[by_name['RoIAlignFunction'].outputs[0]].shape == (
        2,
        4,
        7,
        7,
    )
    assert by_name['DeformConv2dFunction'].inputs[0] == conv
    assert not graph.values[by_name['NMSop'].outputs[0]].floating
    assert len(graph.outputs) == 2
    assert 'new_empty' not in by_name  # made inside the function


@pytest.mark.parametrize('fail', [False, True])
def test_nothing_is_left_behind(kit, fail):
    seen = []

    def body(net, x):
        y = net.relu(net.conv(x))
        if fail:
            raise ArithmeticError('stop')
        return roi_align(y, torch.tensor([[0.0, 1, 1, 9, 9]]), 7)

    net = Net(body)
    net.conv.register_forward_hook(lambda *a: seen.append(1))
    before = [
        (dict(m._forward_hooks), dict(m._forward_pre_hooks), sorted(vars(m)))
        for m in net.modules()
    ]
    function = RoIAlignFunction.__dict__['forward']
    image = torch.rand(1, 3, 16, 16)
    if fail:
        with pytest.raises(ArithmeticError):
            kit.look(net, lambda: net(image))
    else:
        want = net.eval()(image)
        got = []
        kit.look(net, lambda: got.append(net(image)))
        assert torch.equal(got[0], want)
    assert len(seen) == 2 - fail
    assert before == [
        (dict(m._forward_hooks), dict(m._forward_pre_hooks), sorted(vars(m)))
        for m in net.modules()
    ]
    assert RoIAlignFunction.__dict__['forward'] is function
    assert torch.overrides._get_current_function_mode_stack() == []
    assert vars(image) == {}


def test_a_module_that_fails_is_survived(kit):

    def body(net, x):
        try:
            net.conv2(x)  # wrong number of channels
        except RuntimeError:
            x = x * 2
        return net.conv2(F.relu(net.conv(x)))

    assert names(kit.look(Net(body))) == ['mul', 'Conv2d', 'relu', 'Conv2d']


def test_activations_are_not_kept(kit):
    refs = []

    def body(net, x):
        y = net.conv(x)
        refs.append(weakref.ref(y))
        z = net.conv2(y)
        del y
        assert refs[0]() is None
        return z

    kit.look(Net(body))


def test_data_elements_none_and_kwargs(kit):

    def body(net, x):
        data = InstanceData(scores=net.conv(input=x).flatten(0, 2))
        return [None, {'a': (data, 'text')}]

    graph = kit.look(Net(body))
    assert names(graph) == ['Conv2d', 'flatten']
    assert graph.outputs == graph.ops[-1].outputs
    assert kit.look(Net(lambda net, x: None)).outputs == ()


def test_tensor_subclass(kit):

    class Tagged(torch.Tensor):
        pass

    net = Net(lambda net, x: F.relu(net.conv(x)))
    image = torch.rand(1, 3, 8, 8).as_subclass(Tagged)
    graph = kit.look(net, lambda: net(image))
    assert names(graph) == ['Conv2d', 'relu']
    assert 'stem' in graph.layers['conv'].roles


def test_image_by_argument_or_by_first_layer(kit):
    net = Net(lambda net, x: net.conv(x))
    image = torch.rand(1, 3, 8, 8)
    # the model's own call is bypassed
    for images in (None, [image]):
        graph = kit.look(net, lambda: net.forward(image * 1), images=images)
        assert [v.shape for v in graph.values.values() if v.is_input] == [
            (1, 3, 8, 8)
        ]
        assert kit.with_role(graph, 'stem') == ['conv']
