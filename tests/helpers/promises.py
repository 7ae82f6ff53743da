# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every registered quantizer is held to.

A new quantizer joins by adding factories to ``FACTORIES``: functions of the
bit-width that give a new, unset quantizer for tensors of shape [2, 6, ...].
A factory whose quantizer has fewer widths than 2 to 8 lists them as its
attribute ``bits``.
"""

import copy
import io

import torch
from hypothesis import strategies as st
from seeded import seeded

from mmdet_ptq.quantizers import (
    AdaLogQuantizer,
    ChannelGroups,
    CodebookQuantizer,
    Encoding,
    InstanceGroupQuantizer,
    LLAQuantizer,
    LogQuantizer,
    PerInstance,
    PowerOfTwoQuantizer,
    SubsetQuantizer,
    TwinUniformQuantizer,
    UniformQuantizer,
    export_mode,
)

FACTORIES = {}


def factory(name):
    def register(function):
        FACTORIES[name] = function
        return function

    return register


for _sym in (False, True):
    for _role in ('act', 'weight'):
        for _kind in ('tensor', 'channel', 'group'):
            _args = dict(
                symmetric=_sym,
                granularity=_kind,
                role=_role,
                group_size=2 if _kind == 'group' else None,
            )
            FACTORIES[
                f'uniform-{"sym" if _sym else "aff"}-{_role}-{_kind}'
            ] = lambda bits, a=_args: UniformQuantizer(bits, **a)


def _subset(**args):
    def make(bits):
        return SubsetQuantizer(bits, **args)

    make.bits = (2, 3, 4)
    return make


FACTORIES['subset-tensor'] = _subset(granularity='tensor')
FACTORIES['subset-channel'] = _subset(granularity='channel')
FACTORIES['subset-deconv'] = _subset(granularity='channel', axis=1)


for _name, _args in {
    'channel': {},
    'tensor': dict(granularity='tensor', k_granularity='layer'),
    'deconv': dict(axis=1, zero=True),
    'log': dict(rounding='log', zero=False),
    'layer-log-zero': dict(rounding='log', zero=True, k_granularity='layer'),
    'median': dict(mu='median'),
    # keeps them all until it learns: test_llaq/test_quantizer.py
    'literal': dict(form='paper_literal'),
    'literal-log': dict(form='paper_literal', rounding='log', zero=False),
}.items():
    FACTORIES[f'llaq-{_name}'] = lambda bits, a=_args: LLAQuantizer(bits, **a)

GELU = 0.16997124254703522
for _name, (_cls, _args) in {
    'log2': (LogQuantizer, dict()),
    'log2-channel': (LogQuantizer, dict(granularity='channel')),
    'log2-linear': (LogQuantizer, dict(rounding='linear')),
    'log2-inverse': (LogQuantizer, dict(rounding='inverse')),
    'log2-whole': (LogQuantizer, dict(rounding='whole')),
    'sqrt2': (LogQuantizer, dict(base='sqrt2')),
    'sqrt2-shift': (LogQuantizer, dict(base='sqrt2', shift=GELU)),
    'sqrt2-fixed': (LogQuantizer, dict(base='sqrt2', fixed_scale=1.0)),
    'adalog': (AdaLogQuantizer, dict()),
    'adalog-group': (
        AdaLogQuantizer,
        dict(granularity='group', group_size=2),
    ),
    'adalog-shift': (AdaLogQuantizer, dict(shift=GELU)),
    'adalog-fixed': (AdaLogQuantizer, dict(fixed_scale=1.0)),
    'twin-softmax': (TwinUniformQuantizer, dict()),
    'twin-channel': (TwinUniformQuantizer, dict(granularity='channel')),
    'twin-fixed': (TwinUniformQuantizer, dict(fixed_scale=1.0)),
    'twin-gelu': (TwinUniformQuantizer, dict(form='gelu')),
    'twin-aligned': (
        TwinUniformQuantizer,
        dict(form='gelu', align_pow2=True),
    ),
    'codebook': (CodebookQuantizer, dict()),
    'codebook-group': (
        CodebookQuantizer,
        dict(granularity='group', group_size=2),
    ),
    'codebook-weight': (
        CodebookQuantizer,
        dict(granularity='channel', role='weight'),
    ),
    'power-of-two': (PowerOfTwoQuantizer, dict()),
    'power-of-two-group': (
        PowerOfTwoQuantizer,
        dict(granularity='group', group_size=2),
    ),
}.items():
    FACTORIES[_name] = lambda bits, c=_cls, a=_args: c(bits, **a)


def _no_zero(bits):
    """As many powers as codes."""
    return LogQuantizer(bits, powers=2**bits)


FACTORIES['log2-no-zero'] = _no_zero


for _kind, _axis in (('channel', None), ('row', None), ('row', -2)):
    for _groups in (1, 3, 6):
        FACTORIES[f'instance-{_kind}{_axis or ""}-{_groups}'] = (
            lambda bits, k=_kind, a=_axis, g=_groups: InstanceGroupQuantizer(
                bits, num_groups=g, granularity=k, axis=a
            )
        )


def _groups(role):
    def make(bits):
        widths = [bits, max(2, bits - 2), bits]
        if role == 'weight':
            widths = widths[1:]  # two channels, a group each
        return ChannelGroups(
            bits, widths, 1 if role == 'weight' else 2, role=role
        )

    return make


FACTORIES['groups-act'] = _groups('act')
FACTORIES['groups-weight'] = _groups('weight')


def code_bits(q, shape):
    """Bits of the codes of a tensor, as they have to be."""
    if isinstance(q, ChannelGroups):
        each = torch.Size(shape).numel() // len(q.widths)
        return [each * w for w in q.widths]
    return [torch.Size(shape).numel() * q.bits]


def packed_bytes(q, shape):
    """Whole bytes, of each width by itself."""
    found = {}
    widths = q.widths if isinstance(q, ChannelGroups) else [q.bits]
    for bits, width in zip(code_bits(q, shape), widths, strict=True):
        found[width] = found.get(width, 0) + bits
    return sum(-(-bits // 8) for bits in found.values())


def bits_of(make):
    """The bit-widths that a factory takes: 2 to 8 unless it says less."""
    return tuple(getattr(make, 'bits', range(2, 9)))


@st.composite
def tensors(draw):
    """Shapes, strides and values a detector may hand over."""
    shape = (2, 6, draw(st.integers(0, 4)), draw(st.sampled_from([2, 4])))
    generator = seeded(draw(st.integers(0, 2**31)))
    x = torch.randn(shape, generator=generator)
    x *= 10.0 ** draw(st.integers(-12, 12))
    kind = draw(
        st.sampled_from(
            ['plain', 'relu', 'negative', 'constant', 'zero', 'outlier']
        )
    )
    if kind == 'relu':
        x = x.relu()
    elif kind == 'negative':
        x = -x.abs()
    elif kind == 'constant':
        x = torch.full(shape, float(x.flatten()[0]) if x.numel() else 1.0)
    elif kind == 'zero':
        x = torch.zeros(shape)
    elif kind == 'outlier' and x.numel():
        x[0, 0, 0, 0] *= 1e20
    layout = draw(st.sampled_from(['nchw', 'nhwc', 'transposed', 'gaps']))
    if layout == 'nhwc':
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == 'transposed':
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == 'gaps':
        x = torch.stack([x, x], -1)[..., 0]
    return x


def fit(quantizer, x, shrink=1.0):
    """Sets the range from the tensor, as a calibration would."""
    rows = quantizer.granularity.rows(x)
    if rows.shape[1] == 0:
        rows = torch.zeros(max(1, rows.shape[0]), 1)
    low, high = rows.amin(1) * shrink, rows.amax(1) * shrink
    if isinstance(quantizer, PerInstance):
        groups = quantizer.num_groups
        shares = torch.linspace(1, groups, groups) / groups
        low, high = low.amin() * shares, high.amax() * shares
    quantizer.set_range(low, high)
    return quantizer.eval()


def check_all(make, bits, x, shrink=1.0):
    q = fit(make(bits), x, shrink)
    with torch.no_grad():
        y = q(x)
    check_codes(q, x, y)
    check_encoding(q, x, y)
    check_output(q, x, y)
    check_state(q, make(bits), x, y)


def check_codes(q, x, y):
    codes = q.encode(x)
    assert codes.dtype == torch.int32 and codes.shape == x.shape
    # counting distinct codes in each row, and over all rows
    assert codes.unique().numel() <= 2**q.bits
    decoded = q.encoding(x).decode(codes)
    assert decoded.dtype == torch.float32
    assert same_bits(decoded, y)


def same_bits(a, b):
    """Bits, not values: a negative zero would be a difference."""
    a, b = (t.contiguous().view(torch.int32) for t in (a, b))
    return torch.equal(a, b)


def check_encoding(q, x, y):
    """One description, with or without the tensor, gives all there is."""
    codes = q.encode(x)
    found = [q.encoding(x)]
    if not isinstance(q, PerInstance):
        found.append(q.encoding())
    for e in found:
        assert isinstance(e, Encoding) and e.bits == q.bits
        assert torch.equal(e.encode(x), codes)
        assert same_bits(e.decode(codes), y)
        packed = e.pack(codes)
        assert packed.dtype == torch.uint8
        assert packed.numel() == packed_bytes(q, x.shape)
        assert torch.equal(e.unpack(packed, x.shape), codes.cpu())
        check_taken(e, x, codes)
    with torch.no_grad(), export_mode():
        assert same_bits(q(x), y)


def check_taken(e, x, codes):
    """Rows by themselves, in any order, some of them twice."""
    rows, wanted = e.granularity.rows(x), e.granularity.rows(codes)
    order = torch.arange(len(rows) - 1, -1, -1).repeat(2)
    taken = e.take(order)
    assert taken.bits == e.bits
    assert torch.equal(taken.encode(rows[order]), wanted[order])
    decoded = e.granularity.rows(e.decode(codes))[order]
    assert same_bits(taken.decode(wanted[order]), decoded)


def check_output(q, x, y):
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.isfinite(y).all()
    with torch.no_grad():
        check_idempotent(q, x, y)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            z = q(x.clamp(-6e4, 6e4).to(dtype))
            assert z.dtype == dtype and torch.isfinite(z).all()
    bits = q.storage_bits(x.shape)
    assert isinstance(bits, int) and bits >= sum(code_bits(q, x.shape))
    rows = q.num_rows()
    assert isinstance(rows, int) and rows >= 1
    if x.numel() and not isinstance(q, PerInstance):
        codes = sum(code_bits(q, x.shape))
        assert bits == codes + q.parameter_bits(rows)


def check_idempotent(q, x, y):
    """Also of what depends on the tensor, where that chose the same."""
    if not isinstance(q, PerInstance):
        assert torch.equal(q(y), y)
        return
    e = q.encoding(x)
    assert same_bits(e.decode(e.encode(y)), y)
    stays = q.groups_of(x) == q.groups_of(y)
    once, again = (q.granularity.rows(t) for t in (y, q(y)))
    assert torch.equal(once[stays], again[stays])


def check_state(q, fresh, x, y):
    stream = io.BytesIO()
    torch.save(q.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    fresh.load_state_dict(state)
    with torch.no_grad():
        assert bool(fresh.initialized)
        assert torch.equal(fresh.eval()(x), y)
        assert torch.equal(copy.deepcopy(q)(x), y)
