"""The post-norm blocks of BERT (Devlin et al. 2019): attention and MLP, each with its residual before the norm.

Parameters bear the names of the published checkpoints (`attention.self.query`, `output.LayerNorm`, ...), so that those
load as they are. A configuration is any of transformers' that has BERT's fields.

Legend: B batch, L query positions, S key positions, W width, I width inside the MLP, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tessera.layers.attention import attend
from tessera.layers.multihead import split_heads

EPS = 1e-12  # of every norm


def key_mask(mask: Tensor | None) -> Tensor | None:
    """[B, S], 1 or True where a position may be read -> bool [B, 1, 1, S] for `attend`; None where all may."""
    return None if mask is None else mask.bool()[:, None, None]


class Attention(nn.Module):
    """Queries of x [B, L, W] over a context [B, S, W], heads side by side again: [B, L, W]; no output projection."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = float(config.attention_probs_dropout_prob)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        projected = self.query(x), self.key(context), self.value(context)
        q, k, v = (split_heads(one, self.heads) for one in projected)
        out = attend(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0)
        return out.transpose(1, 2).flatten(2)


class AddNorm(nn.Module):
    """norm(residual + dropout(dense(x))): x [..., inner], residual [..., W] -> [..., W]."""

    def __init__(self, config: Any, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Intermediate(nn.Module):
    """The first half of the MLP, [..., W] -> [..., I]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class SelfAttention(nn.Module):
    """Self-attention with residual and norm, [B, L, W] -> [B, L, W]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = Attention(config)
        self.output = AddNorm(config, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output(self.self(x, x, mask), x)


class CrossAttention(nn.Module):
    """Attention of x [B, L, W] over a context [B, S, W] with residual and norm, [B, L, W]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.att = Attention(config)
        self.output = AddNorm(config, config.hidden_size)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output(self.att(x, context, mask), x)


class Layer(nn.Module):
    """Self-attention and MLP, [B, L, W] -> [B, L, W]; 12 W^2 + 13 W parameters where I = 4 W."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.intermediate = Intermediate(config)
        self.output = AddNorm(config, config.intermediate_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Embeddings(nn.Module):
    """Word, position and segment, summed, normed: ids [B, L] -> [B, L, W].

    Row 0 of all three tables gets no gradient, as published: with random weights it stays as it began.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, padding_idx=0)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        summed = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(summed + self.token_type_embeddings(segments)))


class Transform(nn.Module):
    """Linear, activation, norm before a prediction, [..., W] -> [..., W]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(x)))


class Pooler(nn.Module):
    """tanh of a linear map of the first position, [B, L, W] -> [B, W]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))
