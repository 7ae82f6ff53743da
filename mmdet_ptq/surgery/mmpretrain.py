# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Attention of MMPretrain's backbones; imported once a model has any."""

from mmpretrain.models.utils import attention

from ..registry import DECOMPOSED
from .products import RoutedProducts


@DECOMPOSED.implements(attention.WindowMSA)
class SplitPretrainWindowMSA(RoutedProducts, attention.WindowMSA):
    """Attention of Swin."""


@DECOMPOSED.implements(attention.WindowMSAV2)
class SplitPretrainWindowMSAV2(RoutedProducts, attention.WindowMSAV2):
    """Attention of Swin V2."""

    def borrowed_names(self) -> tuple[str, ...]:
        """Its bias is put together in the forward."""
        return ('qkv',)


@DECOMPOSED.implements(attention.MultiheadAttention)
class SplitPretrainAttention(RoutedProducts, attention.MultiheadAttention):
    """Attention of vision transformers."""


@DECOMPOSED.implements(attention.BEiTAttention)
class SplitBEiTAttention(RoutedProducts, attention.BEiTAttention):
    """Attention of BEiT."""

    def borrowed_names(self) -> tuple[str, ...]:
        """Its bias may be put together in the forward."""
        return ('qkv',) if self.bias == 'qv_bias' else ()


@DECOMPOSED.implements(attention.ChannelMultiheadAttention)
class SplitChannelAttention(
    RoutedProducts, attention.ChannelMultiheadAttention
):
    """Attention between channels."""
