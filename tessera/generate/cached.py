"""A LLaMA run step by step over keys and values that were allocated once.

Where its layers can be laid out for generation they are (`tessera.generate.laid_out`); else it is written out over the
model's own layers, adapters included: the general path of transformers spends more time between the products than in
them at small sizes. Legend: B rows, L new positions, T positions of the cache, d
width, G key-value heads, D head width.
"""

from __future__ import annotations

from copy import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRMSNorm

from tessera.generate.laid_out import laid_out
from tessera.layers.attention import attend


class CachedDecoder:
    """Hidden states of the next positions, given all before them.

    Args:
        model: the language model without its head.
        rows: B.
        capacity: T, positions that a row may reach, padding included.
    """

    def __init__(self, model: LlamaModel, rows: int, capacity: int) -> None:
        config, weight = model.config, model.norm.weight
        groups, width = int(config.num_key_value_heads or 0), int(config.head_dim or 0)  # filled in by LlamaConfig
        shape = (len(model.layers), 2, rows, groups, capacity, width)
        self.model, self.length, self.capacity = model, 0, capacity
        self.cache = torch.empty(shape, dtype=weight.dtype, device=weight.device)  # keys and values
        self.readable: Tensor | None = None  # bool [B, T], where a row has padding
        places = torch.arange(capacity, device=weight.device)
        cos, sin = model.rotary_emb(weight, places[None])
        self.laid = laid_out(model)
        self.turns = None if self.laid is None else self.laid.turns(cos[0], sin[0])
        half = width // 2
        # rotate_half(x) * sin = roll(x, D / 2) * sin with the first half negated: one copy fewer a step
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        self.half = half

    def run(
        self, embeds: Tensor, positions: Tensor, readable: Tensor | None = None, last: Tensor | None = None
    ) -> Tensor:
        """Append L positions to every row.

        Args:
            embeds: [B, L, d].
            positions: int64 [B, L], each position's place in its own sequence.
            readable: bool [B, L], False for padding, on either side; None where there is none.
            last: int64 [B], each row's last readable position, where no other state is wanted: the last layer then
                computes no others.

        Returns:
            Hidden states after the final norm, [B, L, d]; with `last` [B, 1, d]. Those of padding mean nothing.
        """
        start, end = self.length, self.length + embeds.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} are needed")
        self.length = end
        if readable is not None and not bool(readable.all()):
            self.readable = self._all_readable() if self.readable is None else self.readable
            self.readable[:, start:end] = readable
        mask, causal = self._mask(start, end, embeds.device)
        if self.laid is not None and self.turns is not None:
            return self.laid.run(embeds, self.turns[positions], self.cache, (start, end), mask, last)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        hidden = embeds
        for index, layer in enumerate(self.model.layers):
            hidden = self._layer(cast(LlamaDecoderLayer, layer), index, hidden, (cos, sin), (start, end), mask, causal)
        if last is not None:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), last][:, None]
        return _norm(self.model.norm, hidden)

    def again(self, rows: list[int], embeds: Tensor, positions: Tensor) -> Tensor:
        """Read something else at the last L positions of some rows [K, L, d]; see `run`."""
        part, end = copy(self), self.length
        part.keep(rows)
        part.length = start = end - embeds.shape[1]
        hidden = part.run(embeds, positions)
        self.cache[:, :, rows, :, start:end] = part.cache[:, :, :, :, start:end]
        return hidden

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.cache.device)
        self.cache = self.cache.index_select(2, index)
        if self.readable is not None:
            self.readable = self.readable[index]

    def _all_readable(self) -> Tensor:
        return torch.ones(self.cache.shape[2], self.capacity, dtype=torch.bool, device=self.cache.device)

    def _mask(self, start: int, end: int, device: torch.device) -> tuple[Tensor | None, bool]:
        if self.readable is None and (end - start == 1 or start == 0):
            return None, end - start > 1
        earlier = torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)
        if self.readable is None:
            return earlier, False
        return self.readable[:, None, None, :end] & earlier, False

    def _layer(
        self,
        layer: LlamaDecoderLayer,
        index: int,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        span: tuple[int, int],
        mask: Tensor | None,
        causal: bool,
    ) -> Tensor:
        block, (start, end) = layer.self_attn, span
        x = _norm(layer.input_layernorm, hidden)
        q, k, v = (
            project(x).unflatten(-1, (-1, block.head_dim)).transpose(1, 2)
            for project in (block.q_proj, block.k_proj, block.v_proj)
        )
        keys, values = self.cache[index, :, :, :, :end]
        keys[:, :, start:] = self._rotate(k, *rotation)
        values[:, :, start:] = v
        out = attend(self._rotate(q, *rotation), keys, values, mask=mask, causal=causal, scale=block.scaling)
        hidden = hidden + block.o_proj(out.transpose(1, 2).flatten(2))
        return hidden + layer.mlp(_norm(layer.post_attention_layernorm, hidden))

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.addcmul(x * cos, x.roll(self.half, dims=-1), sin)


def _norm(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
    # One fused call instead of the module's six: a tenth of a small model's step.
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
