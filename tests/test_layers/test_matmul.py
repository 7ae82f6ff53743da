# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Products of two activations."""

import torch
from twin_kit import quantizer, twin_of

from mmdet_ptq.layers import MatMul


def test_matmul_quantizes_both_operands():
    a, b = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 6)
    twin = twin_of(MatMul())
    assert torch.equal(twin(a, b), a @ b)
    twin.set_quantizer('a', quantizer('act', a, -1))
    twin.set_quantizer('b', quantizer('act', b, -1, bits=8))
    qa, qb = twin.act_quantizers['a'](a), twin.act_quantizers['b'](b)
    assert torch.equal(twin(a, b), qa @ qb)
    assert not torch.equal(qa, a)
