"""Multi-head attention in ordinary layers, so that it can be spectral and lose heads.

`nn.MultiheadAttention` holds the weights of its queries, keys and values in a bare parameter, and refuses to run with
fewer heads than fill the embedding. `Attention` computes the same from two linear layers, for any number of heads.
"""

import math
from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """What `nn.MultiheadAttention` computes, with heads that need not add up to the embedding."""

    in_proj_bias = None
    """Asked for by `nn.TransformerEncoderLayer`, whose fused kernel is for `nn.MultiheadAttention` only."""
    _qkv_same_embed_dim = False

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        """Takes the parameters of `whole`, for which `can_be_opened`."""
        super().__init__()
        self.num_heads, self.head_dim = whole.num_heads, whole.head_dim
        self.dropout, self.batch_first = whole.dropout, whole.batch_first
        self.in_proj = _linear(whole.in_proj_weight, whole.in_proj_bias)
        """From (..., E) to queries, keys and values, (..., 3 * heads * head_dim)."""
        self.out_proj = _linear(whole.out_proj.weight, whole.out_proj.bias)
        self.train(whole.training)

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
    ) -> tuple[Tensor, Tensor | None]:
        """The arguments and results of `nn.MultiheadAttention`; `is_causal` is only a hint about `attn_mask` there.

        Args:
            query: (B, L, E) if `batch_first`, else (L, B, E); or (L, E).
            key, value: (B, S, E) or (S, B, E); or (S, E).
            key_padding_mask: (B, S) or (S,), True or -inf where a key is ignored.
            need_weights: whether to return the attention weights as well.
            attn_mask: (L, S) or (B * heads, L, S), True or -inf where a query does not see a key.
            average_attn_weights: whether the weights are averaged over heads.
            is_causal: not used.
        """
        is_batch = query.dim() == 3
        if not is_batch:
            query, key, value = (t.unsqueeze(0 if self.batch_first else 1) for t in (query, key, value))
        q, k, v = (self._by_head(t) for t in self._projected(query, key, value))
        mask = _joint_mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q / math.sqrt(self.head_dim) @ k.mT
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)
        y = self.out_proj(y.flatten(2))
        if not is_batch:
            y, weights = y.squeeze(0 if self.batch_first else 1), None if weights is None else weights.squeeze(0)
        return y, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key is value:
            return self.in_proj(query).chunk(3, -1)  # type: ignore[no-any-return]
        weights = self.in_proj.weight.chunk(3)
        biases = (None,) * 3 if self.in_proj.bias is None else self.in_proj.bias.chunk(3)
        return tuple(F.linear(*given) for given in zip((query, key, value), weights, biases, strict=True))

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(B, L, heads * head_dim), or (L, B, heads * head_dim), as (B, heads, L, head_dim)."""
        split = tokens.view(*tokens.shape[:-1], self.num_heads, self.head_dim)
        return split.transpose(1, 2) if self.batch_first else split.permute(1, 2, 0, 3)


def can_be_opened(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether `Attention` computes what this module does."""
    return (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), bias.requires_grad)
    return layer


def _joint_mask(attention: Tensor | None, padding: Tensor | None, queries: Tensor) -> Tensor | None:
    """Both masks as numbers to add to the scores, in a shape that broadcasts to (B, heads, L, S)."""
    found = None
    views: tuple[tuple[Tensor | None, Callable[[Tensor], Tensor]], ...] = (
        (attention, lambda mask: mask if mask.dim() == 2 else mask.view(len(queries), -1, *mask.shape[1:])),
        (padding, lambda mask: mask.view(len(queries), 1, 1, -1)),
    )
    for given, view in views:
        if given is not None:
            mask = view(given)
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=queries.dtype).masked_fill_(mask, -math.inf)
            found = mask if found is None else found + mask
    return found
