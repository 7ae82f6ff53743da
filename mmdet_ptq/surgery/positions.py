# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Attention whose positional encodings have projections of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import Tensor, nn

from ..errors import PTQError
from ..layers import PositionLinear
from ..registry import EDITS
from .attention import SplitMultiheadAttention
from .edits import Edit
from .modules import find_module


class PositionedAttention(MultiheadAttention):
    """MMCV's attention, which adds no encoding to what it projects."""

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attends as MMCV's class does; its arguments are the same."""
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        if key_pos is None and query_pos is not None:
            # MMCV takes the encoding of the queries where it fits the keys
            key_pos = query_pos if query_pos.shape == key.shape else None
        given = (query, key, value, query_pos, key_pos)
        if self.batch_first:
            given = tuple(
                None if x is None else x.transpose(0, 1) for x in given
            )
        query, key, value, query_pos, key_pos = given
        out, _ = self.attn(
            query,
            key,
            value,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            query_pos=query_pos,
            key_pos=key_pos,
        )
        if self.batch_first:
            out = out.transpose(0, 1)
        return identity + self.dropout_layer(self.proj_drop(out))


@EDITS.register_module()
@dataclass
class PositionsSplit(Edit):
    """An attention that projects features and positions apart.

    With features y and an encoding p, ``W (y + p) + b = (W y + b) + W p``.
    One grid for the sum has to cover both, and the second term is a constant
    of the detector, or of the size of the image.

    Attributes:
        module (str): Name of an attention of MMCV whose inner attention is
            taken apart (:class:`Decomposed`).
        queries (bool): Whether queries have an encoding.
        keys (bool): Whether keys have one.
    """

    module: str
    queries: bool = True
    keys: bool = True

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`."""
        self.rebuild(model)
        inner = find_module(model, self.module).attn
        if self.queries:
            inner.q_pos.weight.copy_(inner.q_proj.weight)
        if self.keys:
            inner.k_pos.weight.copy_(inner.k_proj.weight)

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`."""
        module = find_module(model, self.module)
        if not can_split_positions(module):
            raise PTQError(
                f'{self.module!r} is no attention of MMCV that adds its '
                'positional encodings itself'
            )
        module.__class__ = PositionedAttention
        if self.queries:
            module.attn.q_pos = _like(module.attn.q_proj)
        if self.keys:
            module.attn.k_pos = _like(module.attn.k_proj)


def _like(linear: nn.Linear) -> PositionLinear:
    weight = linear.weight
    found = PositionLinear(
        linear.in_features,
        linear.out_features,
        bias=False,
        device=weight.device,
        dtype=weight.dtype,
    )
    return found.train(linear.training)


def can_split_positions(module: nn.Module) -> bool:
    """Whether a module is an attention that adds encodings to its inputs."""
    return type(module) is MultiheadAttention and isinstance(
        module.attn, SplitMultiheadAttention
    )


def positions_used(
    model: nn.Module, forward: Callable[[], Any]
) -> dict[str, tuple[bool, bool]]:
    """Which attentions are given positional encodings.

    Args:
        model (nn.Module): The float detector, taken apart.
        forward (Callable): Runs it.

    Returns:
        dict[str, tuple[bool, bool]]: Of each that is, whether its queries
        and whether its keys have one.
    """
    found: dict[str, tuple[bool, bool]] = {}
    handles = []
    for name, module in model.named_modules():
        if can_split_positions(module):

            def note(
                _: nn.Module, args: tuple, kwargs: dict, name: str = name
            ) -> None:
                queries, keys = _given(*args, **kwargs)
                before = found.get(name, (False, False))
                found[name] = (before[0] or queries, before[1] or keys)

            handles.append(
                module.register_forward_pre_hook(note, with_kwargs=True)
            )
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return {name: given for name, given in found.items() if any(given)}


def _given(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    query_pos: Tensor | None = None,
    key_pos: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[bool, bool]:
    """Whether queries and keys have an encoding in a call."""
    key = query if key is None else key
    fits = query_pos is not None and query_pos.shape == key.shape
    return query_pos is not None, key_pos is not None or fits
