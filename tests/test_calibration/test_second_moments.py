# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Second moments against sums over every output position, one by one."""

import copy
import subprocess
import sys
from itertools import product

import pytest
import torch
from mmcv.cnn.bricks import wrappers
from mmcv.ops import DeformConv2d
from seeded import seeded
from torch import nn
from torch.nn import functional

from mmdet_ptq.calibration import (
    SecondMoments,
    moment_size,
    observing,
    split_by_memory,
)
from mmdet_ptq.context import forward_context
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.layers import MatMul, convert
from mmdet_ptq.quantizers import UniformQuantizer

LAYERS = {
    'linear': nn.Linear(6, 3),
    'linear_mmcv': wrappers.Linear(6, 3),
    'conv': nn.Conv2d(6, 4, 3),
    'conv_mmcv': wrappers.Conv2d(6, 4, 1),
    'padded': nn.Conv2d(6, 4, (3, 2), padding=(2, 1)),
    'strided': nn.Conv2d(6, 4, 3, stride=(2, 3), padding=1),
    'dilated': nn.Conv2d(6, 4, 3, padding=2, dilation=(2, 1)),
    'grouped': nn.Conv2d(6, 4, 3, padding=1, groups=2),
    'depthwise': nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6),
    'same': nn.Conv2d(6, 4, (2, 4), padding='same'),
    'reflect': nn.Conv2d(6, 4, 3, padding=1, padding_mode='reflect'),
}


def naive(layer, x):
    """Patch after patch, in double precision."""
    x = x.double()
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return sum(torch.outer(row, row) for row in rows)[None]
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    x = functional.pad(
        x,
        (left, right, top, bottom),
        layer.padding_mode.replace('zeros', 'constant'),
    )
    (kh, kw), (sh, sw) = layer.kernel_size, layer.stride
    dh, dw = layer.dilation
    total = 0
    for image in x:
        for top in range(0, x.shape[2] - dh * (kh - 1), sh):
            for left in range(0, x.shape[3] - dw * (kw - 1), sw):
                patch = torch.stack(
                    [
                        image[:, top + i * dh, left + j * dw]
                        for i, j in product(range(kh), range(kw))
                    ],
                    1,
                )
                rows = patch.reshape(layer.groups, -1)
                total = total + rows[:, :, None] * rows[:, None]
    return total


def inputs_of(layer, seed=0):
    generator = seeded(seed)
    shapes = [(2, 6, 9, 8), (3, 6, 5, 7)]
    if isinstance(layer, nn.Linear):
        shapes = [(2, 4, 5, 6), (7, 6), (6,)]
    return [torch.randn(s, generator=generator) + 0.5 for s in shapes]


def relative(found, expected):
    """Largest error, as a share of sqrt(M[i, i] M[j, j])."""
    size = expected.diagonal(dim1=1, dim2=2).sqrt()
    error = (found.double() - expected).abs()
    return float((error / (size[:, :, None] * size[:, None])).max())


@pytest.mark.parametrize('chunk', [1, 5000, 2**26])
@pytest.mark.parametrize('name', LAYERS)
def test_against_every_patch(name, chunk):
    layer = copy.deepcopy(LAYERS[name])
    convert(layer)
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        moments = SecondMoments({name: layer}, dtype, chunk)
        expected = rows = 0
        for x in inputs_of(layer):
            moments.observe(name, x)
            moments.observe('another', x)
            expected = expected + naive(layer, x)
            rows += layer(x).numel() // len(layer.weight)
        found = moments.moment(name)
        assert found.dtype == dtype and found.shape == expected.shape
        assert relative(found, expected) < bound
        assert moments.counts == {name: rows}
        assert moment_size(layer, dtype) == found.numel() * found.itemsize
    # columns are those of the weight
    weight = layer.weight.double().flatten(1).unflatten(0, (len(expected), -1))
    energy = (weight @ expected @ weight.mT).diagonal(dim1=1, dim2=2)
    plain = sum(
        layer.double()(x.double()).sub(bias_of(layer)).square().sum()
        for x in inputs_of(layer)
    )
    torch.testing.assert_close(energy.sum(), plain)


def bias_of(layer):
    bias = layer.bias.double()
    return bias if isinstance(layer, nn.Linear) else bias[:, None, None]


@pytest.mark.parametrize('name', ['linear', 'strided', 'grouped'])
def test_unfolded_patches_stay_within_the_bound(name):
    """Counted by what is asked of torch."""
    layer, bound = LAYERS[name], 60_000
    largest = [0]

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if getattr(found, 'dtype', 0) == torch.float64 and found.dim() < 4:
                size = found.numel() * found.itemsize
                largest[0] = max(largest[0], size)
            return found

    x = torch.randn(3, 6, 40, 30)
    if name == 'linear':
        x = x.movedim(1, -1)
    moments = SecondMoments({name: layer}, chunk_bytes=bound)
    assert moment_size(layer) < bound / 2
    with Counting():
        moments.observe(name, x)
    assert bound / 4 < largest[0] <= bound / 2
    assert relative(moments.moment(name), naive(layer, x)) < 1e-12


def test_layers_without_second_moments():
    others = dict(
        deconv=nn.ConvTranspose2d(4, 4, 2),
        deform=DeformConv2d(4, 4, 3),
        matmul=MatMul(),
        norm=nn.LayerNorm(4),
    )
    for name, layer in others.items():
        for _ in range(2):
            assert moment_size(layer) is None
            with pytest.raises(ValueError, match=f'{name}.*no second'):
                SecondMoments({name: layer})
            convert(layer)
    with pytest.raises(ValueError, match='float16'):
        SecondMoments({}, torch.float16)


def test_parts_that_fit():
    layers = dict(
        a=nn.Linear(10, 1),  # 800 bytes in float64
        skip=nn.LayerNorm(3),
        b=nn.Conv2d(4, 4, 2, groups=2),  # 2 * 8 * 8
        c=nn.Linear(5, 9),  # 25
        d=nn.Linear(10, 2),
    )
    sizes = [moment_size(m) for m in layers.values()]
    assert sizes == [800, None, 1024, 200, 800]
    parts = split_by_memory(layers, 1824)
    assert [list(p) for p in parts] == [['a', 'b'], ['c', 'd']]
    assert parts[0]['b'] is layers['b']
    parts = split_by_memory(layers, 1823)
    assert [list(p) for p in parts] == [['a'], ['b', 'c'], ['d']]
    parts = split_by_memory(layers, 1823, torch.float32)
    assert [list(p) for p in parts] == [['a', 'b', 'c', 'd']]
    with pytest.raises(QuantConfigError, match=r"b: .*1024 .*1023.*'1MiB'"):
        split_by_memory(layers, 1023)
    assert split_by_memory({}, 1) == []


def test_float_and_quantized_inputs():
    """Of a head on two levels; levels add up."""
    model = nn.Sequential(nn.Conv2d(6, 4, 3))
    convert(model)
    act = UniformQuantizer(3, per_level=True)
    act.set_range(-torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [4.0]]))
    model[0].attach(acts=dict(input=act), levels=2)
    layers = {'0': model[0]}
    a, b = (torch.randn(1, 6, 5, 5) for _ in range(2))
    for quantized in (False, True):
        moments = SecondMoments(layers)
        with (
            forward_context(),
            observing(
                layers,
                lambda name, _, __, x, to=moments: to.observe(name, x),
                quantized=quantized,
            ),
        ):
            model[0](a)
            model[0](b)
        x, y = (act(a, 0), act(b, 1)) if quantized else (a, b)
        expected = naive(model[0], x) + naive(model[0], y)
        assert relative(moments.moment('0'), expected) < 1e-13


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_going_on_gives_the_same_bits(dtype, tmp_path):
    layer = LAYERS['grouped']
    data = [x for seed in range(3) for x in inputs_of(layer, seed)]
    whole = SecondMoments(dict(a=layer, b=LAYERS['linear']), dtype)
    first = SecondMoments(whole.layers, dtype)
    for x in data:
        whole.observe('a', x)
    for x in data[:4]:
        first.observe('a', x)
    state = first.state_dict()
    first.observe('a', data[0])  # saved is saved
    torch.save(state, tmp_path / 'state.pth')
    again = SecondMoments(whole.layers, dtype)
    again.load_state_dict(torch.load(tmp_path / 'state.pth'))
    for x in data[4:]:
        again.observe('a', x)
    assert torch.equal(again.moment('a'), whole.moment('a'))
    assert again.counts == whole.counts and 'b' not in again.counts
    with pytest.raises(KeyError):
        again.moment('b')


def test_what_is_not_finite_is_named():
    moments = SecondMoments(dict(head=LAYERS['linear']))
    moments.observe('head', torch.tensor([[1.0] * 5 + [float('nan')]]))
    with pytest.raises(NumericError, match='head: NaN'):
        moments.moment('head')


def test_empty_inputs_say_nothing():
    moments = SecondMoments(dict(a=LAYERS['conv'], b=LAYERS['linear']))
    moments.observe('a', torch.zeros(0, 6, 5, 5))
    moments.observe('b', torch.zeros(0, 6))
    assert moments.counts == {}


RANK = """
import sys
import torch
from torch import distributed, nn
from mmdet_ptq.calibration import SecondMoments
rank = int(sys.argv[1])
distributed.init_process_group(
    'gloo', f'file://{sys.argv[2]}', rank=rank, world_size=2
)
torch.manual_seed(0)
layers = dict(a=nn.Linear(3, 1), b=nn.Linear(3, 1), c=nn.Linear(3, 1))
moments = SecondMoments(layers)
x = torch.randn(2, 10, 3)
moments.observe('a', x[rank])
if rank:
    moments.observe('b', x[0, :4])
moments.merge()
torch.save(moments.state_dict(), sys.argv[3])
# a rank that goes while the other still listens would end it
distributed.barrier()
distributed.destroy_process_group()
"""


def test_ranks_add_up(tmp_path, environment):
    """Also where only one of them has seen a layer, or none."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                '-c',
                RANK,
                str(rank),
                str(tmp_path / 'meeting'),
                str(tmp_path / f'{rank}.pth'),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    one, two = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert one['counts'] == two['counts'] == dict(a=20, b=4)
    torch.manual_seed(0)
    for _ in range(3):
        nn.Linear(3, 1)
    x = torch.randn(2, 10, 3).double()
    for name, rows in dict(a=x.flatten(0, 1), b=x[0, :4]).items():
        assert torch.equal(one['sums'][name], two['sums'][name])
        expected = (rows.T @ rows).cpu()
        torch.testing.assert_close(one['sums'][name][0], expected)
    assert list(one['sums']) == ['a', 'b']
