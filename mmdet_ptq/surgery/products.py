# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Modules whose products of activations are routed to layers.

Their own forward runs unchanged. The functions that multiply are caught on
the way and handed to ``MatMul`` modules, in the order in which the forward
calls them; the weight of a linear child that is used without calling the
child (Swin V2) stands for the child. What a forward multiplies beyond that
stays float and is listed by the survey.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn.bricks.context_block import ContextBlock
from mmcv.cnn.bricks.non_local import NonLocal2d
from mmdet.models.layers.transformer.utils import (
    ConditionalAttention,
    DynamicConv,
)
from mmdet.models.utils.vlfuse_helper import BiMultiHeadAttention
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..layers import MatMul
from ..registry import DECOMPOSED
from .decompose import Decomposable

_PRODUCTS = frozenset(
    {
        torch.bmm,
        torch.matmul,
        Tensor.bmm,
        Tensor.matmul,
    }
)


class RoutedProducts(Decomposable):
    """Mixin: products of the class beside it become ``MatMul`` modules.

    To take an attention of your own apart, register a subclass::

        @DECOMPOSED.implements(MyAttention)
        class SplitMyAttention(RoutedProducts, MyAttention):
            pass

    ``bmm``, ``matmul`` and ``@`` take one name of :meth:`product_names`
    each, ``scaled_dot_product_attention`` takes two.
    """

    def product_names(self) -> tuple[str, ...]:
        """Names of the products, in the order of the forward."""
        return ('matmul_qk', 'matmul_pv')

    def heads(self) -> int:
        """How many heads lie in the first axis of operands (n, i, j)."""
        return 1

    def borrowed_names(self) -> tuple[str, ...]:
        """Linear children that the forward reads the weight of, uncalled."""
        return ()

    def split(self) -> None:
        """Turns a module that just changed to this class."""
        # one with a bias of its own is not what the forward computes; a
        # bias that a pass adds later is
        self._borrowed = tuple(
            name
            for name in self.borrowed_names()
            if self.get_submodule(name).bias is None
        )
        for name in self.product_names():
            setattr(self, name, MatMul().train(self.training))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the forward of the original, its products routed."""
        with _Router(self):
            return super().forward(*args, **kwargs)

    def borrowed(self, weight: Tensor) -> nn.Module | None:
        """The child that a use of its weight stands for."""
        for name in self._borrowed:
            child = self.get_submodule(name)
            if child.weight is weight:
                return child
        return None


class _Router(TorchFunctionMode):
    """Catches the products of one forward.

    Args:
        module (RoutedProducts): Whose forward it is.
    """

    def __init__(self, module: RoutedProducts) -> None:
        super().__init__()
        self.module = module
        self.left = list(module.product_names())

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        plain = len(args) == 2 and not kwargs
        if func in _PRODUCTS and plain and self.left:
            return self._product(*args)
        if func is functional.scaled_dot_product_attention and self.left[1:]:
            return self._attend(*args, **kwargs)
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        return func(*args, **kwargs)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        layer = getattr(self.module, self.left.pop(0))
        if a.dim() != 3 or b.dim() != 3:
            return layer(a, b)
        # the channels of a MatMul are its heads, the second axis of four
        heads = self.module.heads()
        a, b = (t.unflatten(0, (-1, heads)) for t in (a, b))
        return layer(a, b).flatten(0, 1)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (
                t.repeat_interleave(groups, -3) for t in (key, value)
            )
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        logits = self._product(query * scale, key.transpose(-2, -1))
        if is_causal:
            shown = torch.ones_like(logits[0, 0], dtype=torch.bool).tril()
            logits = logits.masked_fill(~shown, -math.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            logits = logits + attn_mask
        weights = torch.softmax(logits, dim=-1)
        if dropout_p:
            weights = torch.dropout(weights, dropout_p, True)
        return self._product(weights, value)

    def _linear(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        layer = self.module.borrowed(weight)
        if layer is None:
            return functional.linear(input, weight, bias)
        out = layer(input)
        return out if bias is None else out + bias


class _Heads(RoutedProducts):
    """An attention that lays its heads beside the images of a batch."""

    def heads(self) -> int:
        """See :meth:`RoutedProducts.heads`."""
        return self.num_heads


@DECOMPOSED.implements(ConditionalAttention)
class SplitConditionalAttention(_Heads, ConditionalAttention):
    """Attention of Conditional DETR and DAB-DETR."""


@DECOMPOSED.implements(BiMultiHeadAttention)
class SplitBiMultiHeadAttention(_Heads, BiMultiHeadAttention):
    """Attention between image and text of GLIP and Grounding DINO."""

    def product_names(self) -> tuple[str, ...]:
        """One product of queries and keys serves both directions."""
        return ('matmul_qk', 'matmul_pv_vision', 'matmul_pv_language')


@DECOMPOSED.implements(DynamicConv)
class SplitDynamicConv(RoutedProducts, DynamicConv):
    """Sparse R-CNN's layer whose weights a proposal computes."""

    def product_names(self) -> tuple[str, ...]:
        """See :meth:`RoutedProducts.product_names`."""
        return ('matmul_in', 'matmul_out')


@DECOMPOSED.implements(NonLocal2d)
class SplitNonLocal2d(RoutedProducts, NonLocal2d):
    """MMCV's non-local block, of any mode."""

    def product_names(self) -> tuple[str, ...]:
        """Concatenation multiplies no queries with keys."""
        if self.mode == 'concatenation':
            return ('matmul_pv',)
        return ('matmul_qk', 'matmul_pv')


@DECOMPOSED.implements(ContextBlock)
class SplitContextBlock(RoutedProducts, ContextBlock):
    """GCNet's pooling by attention."""

    def product_names(self) -> tuple[str, ...]:
        """Averages multiply nothing."""
        return ('matmul_pv',) if self.pooling_type == 'att' else ()
