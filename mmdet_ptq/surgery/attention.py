# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Attention modules taken apart into layers that have twins.

Stock attention reads projection weights inside one function call and
multiplies with plain ``@``; a hook or a swapped child never sees either.
The modules here compute the same with linears that are called and
products that are modules. State dict keys stay those of the original.
"""

import math
from typing import Any

import torch
from mmdet.models.backbones.swin import WindowMSA
from torch import Tensor, nn

from ..layers import MatMul
from ..registry import DECOMPOSED
from .decompose import Decomposable


@DECOMPOSED.implements(WindowMSA)
class SplitWindowMSA(Decomposable, WindowMSA):
    """Swin's window attention with its two products as modules."""

    def split(self) -> None:
        """Turns a plain ``WindowMSA`` that just changed class."""
        self.matmul_qk = MatMul()
        self.matmul_pv = MatMul()

    def _position_bias(self) -> Tensor:
        tokens = self.window_size[0] * self.window_size[1]
        rows = self.relative_position_index.reshape(-1)
        bias = self.relative_position_bias_table[rows]
        return bias.reshape(tokens, tokens, -1).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends within windows.

        Args:
            x (Tensor): Shape (windows * batch, tokens, channels).
            mask (Tensor, optional): Shape (windows, tokens, tokens), 0 or
                a large negative number. Defaults to None.

        Returns:
            Tensor: Of the shape of ``x``.
        """
        batch, tokens, channels = x.shape
        heads = self.num_heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, heads, channels // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = self.matmul_qk(q * self.scale, k.transpose(-2, -1))
        logits = logits + self._position_bias().unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            logits = logits.reshape(-1, windows, heads, tokens, tokens)
            logits = logits + mask[None, :, None]
            logits = logits.reshape(-1, heads, tokens, tokens)
        weights = self.attn_drop(self.softmax(logits))
        out = self.matmul_pv(weights, v).transpose(1, 2)
        return self.proj_drop(self.proj(out.reshape(x.shape)))


@DECOMPOSED.implements(nn.MultiheadAttention)
class SplitMultiheadAttention(Decomposable, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose four projections are called.

    The packed ``in_proj_weight`` becomes three linears; state dict hooks
    pack and unpack it, so checkpoints go in and out unchanged.
    """

    @staticmethod
    def why_not(module: nn.MultiheadAttention) -> str:
        """Why this instance cannot be taken apart, '' if it can."""
        if module.bias_k is not None or module.add_zero_attn:
            return 'attention with bias_k or add_zero_attn'
        return ''

    def split(self) -> None:
        """Turns a plain ``MultiheadAttention`` that just changed class."""
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (
                self.q_proj_weight,
                self.k_proj_weight,
                self.v_proj_weight,
            )
        biases = (None,) * 3
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.chunk(3)
        for name in self._packed_names():
            delattr(self, name)
            self.register_parameter(name, None)
        for name, weight, bias in zip('qkv', weights, biases, strict=True):
            linear = nn.Linear(
                weight.shape[1],
                weight.shape[0],
                bias=bias is not None,
                device=weight.device,
                dtype=weight.dtype,
            )
            linear.weight.data.copy_(weight.data)
            if bias is not None:
                linear.bias.data.copy_(bias.data)
            linear.train(self.training)
            setattr(self, f'{name}_proj', linear)
        # the subclass used for out_proj only guards against torch's own
        # dynamic quantization
        self.out_proj.__class__ = nn.Linear
        self.matmul_qk = MatMul()
        self.matmul_pv = MatMul()
        self.register_state_dict_post_hook(_pack_state)
        self.register_load_state_dict_pre_hook(_unpack_state)

    def _packed_names(self) -> list[str]:
        names = (
            ['in_proj_weight']
            if self._qkv_same_embed_dim
            else [f'{n}_proj_weight' for n in 'qkv']
        )
        return names + ['in_proj_bias'] * (self.in_proj_bias is not None)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends as ``nn.MultiheadAttention`` does.

        Args:
            query (Tensor): Shape (L, N, E), or (N, L, E) if
                ``batch_first``, or unbatched (L, E).
            key (Tensor): Shape (S, N, kdim) likewise.
            value (Tensor): Shape (S, N, vdim) likewise.
            key_padding_mask (Tensor, optional): Shape (N, S); True, or a
                number to add, where a key is to be ignored.
            need_weights (bool): Whether to return the attention weights.
            attn_mask (Tensor, optional): Shape (L, S) or
                (N * heads, L, S); True, or a number to add.
            average_attn_weights (bool): Average weights over heads.
            is_causal (bool): A hint that ``attn_mask`` is causal; the mask
                itself is what counts.
            query_pos (Tensor, optional): Like ``query``, what would be added
                to it; for ``q_pos``, see :class:`PositionsSplit`.
            key_pos (Tensor, optional): Like ``key``, for ``k_pos``.

        Returns:
            tuple[Tensor, Tensor | None]: The output, of the shape of
            ``query``, and the weights (N, L, S) or None.
        """
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value, query_pos, key_pos = (
                None if x is None else x.transpose(0, 1)
                for x in (query, key, value, query_pos, key_pos)
            )
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if query_pos is not None:
            q = q + self.q_pos(query_pos)
        if key_pos is not None:
            k = k + self.k_pos(key_pos)
        q, k, v = map(self._heads, (q, k, v))
        weights = self._weights(q, k, attn_mask, key_padding_mask)
        out = self.matmul_pv(weights, v).transpose(1, 2).flatten(2)
        out = self.out_proj(out)
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        if not need_weights:
            return out, None
        if average_attn_weights:
            weights = weights.mean(1)
        return out, weights if batched else weights.squeeze(0)

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, E) to (N, heads, L, E / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _weights(
        self,
        q: Tensor,
        k: Tensor,
        attn_mask: Tensor | None,
        padding: Tensor | None,
    ) -> Tensor:
        """Attention weights, shape (N, heads, L, S)."""
        logits = self.matmul_qk(
            q / math.sqrt(self.head_dim), k.transpose(-2, -1)
        )
        logits = self._mask(logits, attn_mask, padding)
        weights = torch.softmax(logits, dim=-1)
        if self.training and self.dropout:
            weights = torch.dropout(weights, self.dropout, True)
        return weights

    def _mask(
        self, logits: Tensor, attn_mask: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
            logits = logits + _additive(attn_mask, logits)
        if padding is not None:
            logits = logits + _additive(padding[:, None, None], logits)
        return logits


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    zero = torch.zeros_like(mask, dtype=like.dtype)
    return zero.masked_fill(mask, float('-inf'))


def _pack_state(
    module: SplitMultiheadAttention, state: dict, prefix: str, _: Any
) -> None:
    weights = [state.pop(f'{prefix}{n}_proj.weight') for n in 'qkv']
    if module._qkv_same_embed_dim:
        state[f'{prefix}in_proj_weight'] = torch.cat(weights)
    else:
        for name, weight in zip('qkv', weights, strict=True):
            state[f'{prefix}{name}_proj_weight'] = weight
    if module.q_proj.bias is not None:
        state[f'{prefix}in_proj_bias'] = torch.cat(
            [state.pop(f'{prefix}{n}_proj.bias') for n in 'qkv']
        )


def _unpack_state(
    module: SplitMultiheadAttention, state: dict, prefix: str, *_: Any
) -> None:
    for kind in ('weight', 'bias'):
        packed = state.pop(f'{prefix}in_proj_{kind}', None)
        parts = (
            packed.chunk(3)
            if packed is not None
            else [state.pop(f'{prefix}{n}_proj_{kind}', None) for n in 'qkv']
        )
        for name, part in zip('qkv', parts, strict=True):
            if part is not None:
                state[f'{prefix}{name}_proj.{kind}'] = part
