# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Groups by hand, and against the quantizers that they consist of."""

import pytest
import torch
from two_levels import Tiny, batches, inputs_of

from mmdet_ptq.apis import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.cost import operand_bits
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.observers import MinMaxObserver, search_weight_range
from mmdet_ptq.quantizers import ChannelGroups, UniformQuantizer

LAYER = 'bbox_head.0'


def weight(**args):
    return ChannelGroups(8, [4, 8, 2], channels=2, role='weight', **args)


def test_each_group_is_that_of_its_own_quantizer():
    x = torch.randn(5, 3, 2, 2)
    q = weight()
    rows = q.granularity.rows(x)
    q.set_range(rows.amin(1), rows.amax(1))
    for bits, at in ((4, slice(0, 2)), (8, slice(2, 4)), (2, slice(4, 5))):
        one = UniformQuantizer(bits, granularity='channel', role='weight')
        one.set_range(rows[at].amin(1), rows[at].amax(1))
        assert torch.equal(q(x)[at], one(x[at]))
        assert torch.equal(q.encode(x)[at], one.encode(x[at]))


def test_storage_and_packing_by_hand():
    q, x = weight(of=dict(type='UniformQuantizer', symmetric=True)), None
    x = torch.randn(5, 3)
    q.set_range(x.amin(1), x.amax(1))
    # codes of 3 columns: two rows of 4 bits, two of 8, one of 2; a scale each
    assert q.storage_bits(x.shape) == 3 * (2 * 4 + 2 * 8 + 2) + 5 * 32
    packed = q.encoding().pack(q.encode(x))
    # by rising width, each from a byte of its own on: 6, 24 and 48 bits
    assert packed.numel() == 1 + 3 + 6
    assert q.mean_bits() == (2 * 4 + 2 * 8 + 2) / 5
    with pytest.raises(ValueError, match=r'9 bytes are not the 10'):
        q.encoding().unpack(packed[:9], x.shape)


def test_activations_have_one_range_a_group():
    q = ChannelGroups(8, [8, 4], channels=3)
    x = torch.randn(2, 6, 4, 4)
    q.set_range(torch.tensor([-1.0, -2]), torch.tensor([1.0, 2]))
    for bits, at, end in ((8, slice(0, 3), 1.0), (4, slice(3, 6), 2.0)):
        one = UniformQuantizer(bits)
        one.set_range(torch.tensor([-end]), torch.tensor([end]))
        assert torch.equal(q(x)[:, at], one(x[:, at]))
    assert q.mean_bits() == 6


def test_levels_have_their_own_ranges():
    q = ChannelGroups(8, [8, 4], channels=3, per_level=True)
    end = torch.tensor([[1.0, 2], [3, 4]])
    q.set_range(-end, end)
    alone = ChannelGroups(8, [8, 4], channels=3)
    alone.set_range(-end[1], end[1])
    x = 4 * torch.randn(2, 6, 4, 4)
    assert torch.equal(q(x, 1), alone(x))
    assert q.num_levels() == 2 and q.num_rows() == 4


def test_the_search_gives_each_row_the_range_of_its_width():
    x = torch.randn(5, 400)
    low, high = search_weight_range(x, weight())
    for bits, at in ((4, slice(0, 2)), (8, slice(2, 4)), (2, slice(4, 5))):
        one = UniformQuantizer(bits, granularity='channel', role='weight')
        want = search_weight_range(x[at], one)
        assert torch.equal(low[at], want[0])
        assert torch.equal(high[at], want[1])


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (dict(bits=6), 'bits must be the greatest of widths'),
        (dict(channels=0), 'channels must be a whole number from 1'),
        (dict(of=dict(type='UniformQuantizer', bits=4)), 'bits cannot be'),
        (
            dict(of=dict(type='SubsetQuantizer')),
            'ChannelGroups.of: SubsetQuantizer: ',
        ),
    ],
)
def test_arguments_are_checked(args, words):
    given = dict(bits=8, widths=[4, 8], channels=2)
    with pytest.raises((ValueError, QuantConfigError), match=words):
        ChannelGroups(**{**given, **args})


def rules(model, observer):
    """Two widths for one layer's weight, and for its input."""
    out, channels = model.get_submodule(LAYER).weight.shape[:2]
    act = dict(bits=8, widths=[8, 3], channels=channels // 2)
    groups = dict(bits=5, widths=[2, 5], channels=-(-out // 2))
    return dict(
        bits='w5a8',
        rules=[
            dict(
                match='*',
                weight=dict(type='UniformQuantizer', granularity='channel'),
                act=dict(type='UniformQuantizer'),
            ),
            dict(
                match=LAYER,
                weight=dict(type='ChannelGroups', **groups),
                act=dict(type='ChannelGroups', **act),
            ),
        ],
        passes=[
            dict(type='FoldBatchNorm'),
            dict(type='Observe', observer=dict(type=observer)),
            dict(type='SetRanges'),
        ],
    )


@pytest.mark.parametrize('observer', ['MinMaxObserver', 'LpObserver'])
def test_observed_set_saved_and_loaded(tmp_path, observer):
    model, data = Tiny().eval(), batches()
    session = quantize_detector(model, data, rules(model, observer))
    layer = session.layers[LAYER]
    found = layer.act_quantizers['input']
    for name, q in (('weight', layer.weight_quantizer), ('input', found)):
        assert type(q) is ChannelGroups, name
    first, second = operand_bits(session.plan.layers[LAYER], layer)
    assert first == layer.weight_quantizer.mean_bits() < 5
    assert second == 5.5
    if observer == 'MinMaxObserver':
        seen = MinMaxObserver()
        seen.bind(found.granularity)
        for x in inputs_of(Tiny().eval(), LAYER, data, 'predict'):
            seen.observe(x)
        want = ChannelGroups(8, [8, 3], found.channels)
        want.set_range(*seen.ranges(want))
        x = torch.randn(2, 2 * found.channels, 4, 4)
        torch.testing.assert_close(found(x), want(x))
    path = tmp_path / 'quantized.pth'
    save_quantized(session, path)
    saved = torch.load(path, weights_only=True)
    assert LAYER in saved['codes']
    again = load_quantized(Tiny().eval(), path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_widths_that_do_not_fit_a_layer_are_told():
    model = Tiny().eval()
    cfg = rules(model, 'MinMaxObserver')
    cfg['rules'][1]['weight']['channels'] = 1000
    with pytest.raises(QuantConfigError, match=f'{LAYER}.weight: 2 widths'):
        quantize_detector(model, batches(), cfg)
