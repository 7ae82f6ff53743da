# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Products that a forward makes by itself become layers."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.context_block import ContextBlock
from mmcv.cnn.bricks.non_local import NonLocal2d
from mmdet.models.layers.transformer.utils import (
    ConditionalAttention,
    DynamicConv,
)
from mmdet.models.utils.vlfuse_helper import BiMultiHeadAttention
from torch import nn
from torch.nn import functional

from mmdet_ptq.graph import survey
from mmdet_ptq.layers import (
    MatMul,
    convert,
    is_leaf,
    ports_of,
    quant_layers,
)
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.registry import DECOMPOSED
from mmdet_ptq.surgery import RoutedProducts, decompose


class V2Attention(nn.Module):
    """As Swin V2's: cosine logits, a bias that is put together."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.randn(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros(2 * width)])
        qkv = functional.linear(input=x, weight=self.qkv.weight, bias=bias)
        qkv = qkv.reshape(n, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = (functional.normalize(t, dim=-1) for t in (q, k))
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))


class FusedAttention(nn.Module):
    """As most of today's: one function does it all."""

    def __init__(self, **kwargs):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.kwargs = kwargs

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        attend = functional.scaled_dot_product_attention
        return attend(q, k, v, **self.kwargs).transpose(1, 2).flatten(2)


class Written(nn.Module):
    """Products as they may be written; each takes a and b, (n, i, j)."""

    def __init__(self, *products):
        super().__init__()
        self.products = products

    def forward(self, a, b):
        return sum(product(a, b) for product in self.products)


@DECOMPOSED.implements(Written)
class SplitWritten(RoutedProducts, Written):
    def product_names(self):
        return ('matmul_qk',)


@DECOMPOSED.implements(V2Attention)
class SplitV2(RoutedProducts, V2Attention):
    def borrowed_names(self):
        return ('qkv',)


@DECOMPOSED.implements(FusedAttention)
class SplitFused(RoutedProducts, FusedAttention):
    pass


def context(pooling):
    block = ContextBlock(8, 0.5, pooling)
    nn.init.normal_(block.channel_add_conv[-1].weight)
    return block


def x(*shape):
    return torch.randn(*shape)


MODULES = {
    'conditional self': (
        lambda: ConditionalAttention(16, 4),
        lambda: dict(
            query=x(2, 5, 16), key=x(2, 5, 16), query_pos=x(2, 5, 16)
        ),
        dict(matmul_qk=(2, 4), matmul_pv=(2, 4)),
    ),
    'bidirectional': (
        lambda: BiMultiHeadAttention(16, 12, 8, 2),
        lambda: dict(vision=x(2, 5, 16), lang=x(2, 3, 12)),
        dict(
            matmul_qk=(2, 2),
            matmul_pv_vision=(2, 2),
            matmul_pv_language=(2, 2),
        ),
    ),
    'dynamic': (
        lambda: DynamicConv(8, 4, input_feat_shape=3),
        lambda: dict(param_feature=x(5, 8), input_feature=x(5, 8, 3, 3)),
        dict(matmul_in=(5, 1), matmul_out=(5, 1)),
    ),
    **{
        f'non-local {mode}': (
            lambda mode=mode: NonLocal2d(8, mode=mode, zeros_init=False),
            lambda: dict(x=x(2, 8, 4, 4)),
            dict(matmul_pv=(2, 1))
            if mode == 'concatenation'
            else dict(matmul_qk=(2, 1), matmul_pv=(2, 1)),
        )
        for mode in (
            'gaussian',
            'embedded_gaussian',
            'dot_product',
            'concatenation',
        )
    },
    'context att': (
        lambda: context('att'),
        lambda: dict(x=x(2, 8, 4, 4)),
        dict(matmul_pv=(2, 1)),
    ),
    'context avg': (
        lambda: context('avg'),
        lambda: dict(x=x(2, 8, 4, 4)),
        {},
    ),
    'swin v2': (
        V2Attention,
        lambda: dict(x=x(2, 5, 16)),
        dict(matmul_qk=(2, 2), matmul_pv=(2, 2)),
    ),
    **{
        f'fused {list(kwargs)}': (
            lambda kwargs=kwargs: FusedAttention(**kwargs),
            lambda: dict(x=x(2, 5, 16)),
            dict(matmul_qk=(2, 2), matmul_pv=(2, 2)),
        )
        for kwargs in (
            {},
            dict(is_causal=True),
            dict(attn_mask=torch.eye(5, dtype=torch.bool)),
            dict(attn_mask=torch.arange(25.0).reshape(5, 5), scale=0.3),
            # of a dropout of everything nothing is left, in eval as well
            dict(dropout_p=1.0),
        )
    },
}


@pytest.fixture(params=MODULES.values(), ids=MODULES)
def case(request):
    torch.manual_seed(0)
    make, inputs, products = request.param
    return make().eval(), inputs(), products


def leaves(out):
    return torch.utils._pytree.tree_leaves(out)


def split(module):
    holder = nn.ModuleList([copy.deepcopy(module)])
    edits, refused = decompose(holder)
    assert refused == {} and any(edit.module == '0' for edit in edits)
    return holder[0]


@torch.no_grad()
def test_the_same_with_products_as_layers(case):
    module, inputs, products = case
    expected = module(**inputs)
    one = split(module)
    assert list(one.state_dict()) == list(module.state_dict())
    assert not any(part.training for part in one.modules())
    parts = [n for n, p in one.named_modules() if isinstance(p, MatMul)]
    assert parts == list(products)
    seen = {}
    for name, part in one.named_modules():
        if isinstance(part, MatMul):
            part.register_forward_hook(
                lambda _, args, out, name=name: seen.update(
                    {name: tuple(args[0].shape[:2])}
                )
            )
    for a, b in zip(leaves(one(**inputs)), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    # the second axis holds the heads, whose scales are their own
    assert seen == products


@torch.no_grad()
def test_a_layer_whose_weight_is_borrowed_is_called():
    torch.manual_seed(0)
    one = split(V2Attention().eval())
    inputs = x(2, 5, 16)
    expected = one(inputs)
    holder = nn.ModuleList([one])
    convert(holder)
    calls = []
    with one.qkv.listening(lambda *call: calls.append(call)):
        assert torch.equal(one(inputs), expected)
    assert len(calls) == 1 and torch.equal(calls[0][2], inputs)
    # quantized, the product is taken with the quantized weight
    weight = UniformQuantizer(2, granularity='channel', role='weight')
    weight.set_range(*(s * torch.ones(48) for s in (-1, 1)))
    one.qkv.attach(weight)
    found = one(inputs)
    plain = V2Attention().eval()
    plain.load_state_dict(one.state_dict(), strict=False)
    plain.qkv.weight.copy_(weight(one.qkv.weight))
    torch.testing.assert_close(found, plain(inputs))
    assert not torch.allclose(found, expected)


def test_another_bias_than_the_layers_is_no_call_of_it():
    class Odd(V2Attention):
        pass

    @DECOMPOSED.implements(Odd)
    class SplitOdd(RoutedProducts, Odd):
        def borrowed_names(self):
            return ('qkv',)

    module = Odd().eval()
    module.qkv = nn.Linear(16, 48)
    inputs = x(2, 5, 16)
    torch.testing.assert_close(split(module)(inputs), module(inputs))


def calls(module, *args):
    """Inputs of the product that is a layer; checks the result."""
    one, seen = split(module), []
    one.matmul_qk.register_forward_hook(lambda _, args, out: seen.append(args))
    torch.testing.assert_close(one(*args), module(*args))
    return seen


def sdpa(a, b):
    attend = functional.scaled_dot_product_attention
    return attend(a, b.transpose(1, 2), b.transpose(1, 2))


BY_NAME = (
    lambda a, b: torch.matmul(input=a, other=b),
    lambda a, b: torch.matmul(a, other=b),
    lambda a, b: torch.bmm(a, mat2=b),
)


@pytest.mark.parametrize(
    'product',
    [
        lambda a, b: a @ b,
        lambda a, b: a.matmul(b),
        lambda a, b: a.bmm(b),
        torch.matmul,
        torch.bmm,
    ],
)
def test_each_spelling_of_a_product(product):
    module = Written(product).eval()
    assert len(calls(module, x(2, 3, 4), x(2, 4, 5))) == 1
    # one that has no name is none, nor is half an attention
    for more in (product, sdpa, *BY_NAME):
        module = Written(product, more).eval()
        assert len(calls(module, x(2, 3, 4), x(2, 4, 3 + (more is sdpa)))) == 1


@pytest.mark.parametrize('product', BY_NAME)
def test_operands_by_name_are_no_layer(product):
    assert calls(Written(product).eval(), x(2, 3, 4), x(2, 4, 5)) == []


def test_attention_with_a_name_too_few_is_no_layer():
    assert calls(Written(sdpa).eval(), x(2, 3, 4), x(2, 4, 3)) == []


def test_operands_without_heads_are_handed_on():
    (given,) = calls(Written(torch.matmul).eval(), x(2, 3, 4), x(4, 5))
    assert [tuple(t.shape) for t in given] == [(2, 3, 4), (4, 5)]


class Grouped(nn.Module):
    """Four heads of queries, two of keys and values."""

    def forward(self, q, k, v):
        attend = functional.scaled_dot_product_attention
        return attend(q, k, v, enable_gqa=True)


@DECOMPOSED.implements(Grouped)
class SplitGrouped(RoutedProducts, Grouped):
    pass


def test_queries_in_groups():
    q, k, v = x(2, 4, 5, 8), x(2, 2, 5, 8), x(2, 2, 5, 8)
    module = Grouped().eval()
    torch.testing.assert_close(split(module)(q, k, v), module(q, k, v))


def test_gradients_reach_the_inputs(case):
    module, inputs, _ = case
    if getattr(module, 'mode', '') == 'concatenation':
        pytest.skip('mmcv overwrites what its own gradient needs')
    found = []
    for one in (module, split(module)):
        given = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        sum((out**2).sum() for out in leaves(one(**given))).backward()
        found.append([v.grad for v in given.values()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_each_layer_is_called_once():
    model = nn.ModuleDict(dict(attn=V2Attention())).eval()
    decompose(model)
    inputs = x(2, 5, 16)
    graph = survey(
        model, lambda: model.attn(inputs), is_leaf=is_leaf, ports=ports_of
    )
    calls = {name: len(node.calls) for name, node in graph.layers.items()}
    assert calls == {
        'attn.qkv': 1,
        'attn.matmul_qk': 1,
        'attn.matmul_pv': 1,
        'attn.proj': 1,
    }
    assert graph.products == graph.borrowed == {}
    assert graph.layers['attn.matmul_pv'].port_roles['a'] == {'softmax'}


def test_names_in_a_model():
    model = nn.ModuleDict(dict(attn=V2Attention()))
    decompose(model)
    convert(model)
    assert list(quant_layers(model)) == [
        'attn.qkv',
        'attn.proj',
        'attn.matmul_qk',
        'attn.matmul_pv',
    ]
