# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Products of two activations."""

import torch
from twin_kit import quantizer, twin_of

from mmdet_ptq.layers import MatMul
from mmdet_ptq.plan import build_quantizer
from mmdet_ptq.structures import QuantSpec


def test_matmul_quantizes_both_operands():
    a, b = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 6)
    twin = twin_of(MatMul())
    assert torch.equal(twin(a, b), a @ b)
    twin.set_quantizer('a', quantizer('act', a, -1))
    twin.set_quantizer('b', quantizer('act', b, -1, bits=8))
    qa, qb = twin.act_quantizers['a'](a), twin.act_quantizers['b'](b)
    assert torch.equal(twin(a, b), qa @ qb)
    assert not torch.equal(qa, a)


def test_grids_of_rows_leave_the_sums_of_a_product_whole():
    """Codes are multiplied as integers, and scales come behind the sum."""
    a, b = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 6)
    twin = twin_of(MatMul())
    spec = QuantSpec(
        'InstanceGroupQuantizer', 4, dict(num_groups=4, granularity='row')
    )
    parts = {}
    for port, x in dict(a=a, b=b).items():
        q = build_quantizer(spec, twin, port, 'x')
        q.set_range(-torch.arange(1.0, 5.0), torch.arange(1.0, 5.0))
        twin.set_quantizer(port, q)
        encoding = q.encoding(x)
        scale, zero = (
            q.granularity.expand(n, x.shape).double()
            for n in (encoding.scale, encoding.zero_point)
        )
        assert len(encoding.scale.unique()) > 1
        parts[port] = encoding.encode(x).double() - zero, scale
    (codes_a, scale_a), (codes_b, scale_b) = parts.values()
    assert scale_a.shape == (2, 3, 5, 1) and scale_b.shape == (2, 3, 1, 6)
    want = (codes_a @ codes_b) * scale_a * scale_b
    assert torch.allclose(twin(a, b).double(), want, atol=1e-5)
