"""A LLaMA's layers laid out for generation: what reads the same input is one matrix, norms are part of what follows.

A small model's step is mostly the time between its products, so there are few of them and little in between. Queries
and keys are rotated as complex numbers, for which the channels of each head are put into pairs; their products stay the
same. Legend: B rows, L new positions, T positions of the cache, d width, F inner width of the MLP, H query heads, G
key-value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from tessera.layers.attention import attend
from tessera.layers.masks import additive

# The layers are copied. Above this many bytes the time between products no longer matters, and memory does.
LARGEST = 2**30
Stamp = tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class _Layer:
    """One layer. Matrices are stored as their products read them: [inputs, outputs]."""

    qkv: Tensor  # [d, (H + 2 G) D], with the norm before it, and the scale of the scores in its queries
    out: Tensor  # [H D, d]
    gate_up: Tensor  # [d, 2 F], with the norm before it
    down: Tensor  # [F, d]
    act: Any

    @classmethod
    def of(cls, layer: LlamaDecoderLayer) -> _Layer:
        """A layer of transformers' model."""
        block, mlp = layer.self_attn, layer.mlp
        q, k = (_paired(one.weight, block.head_dim) for one in (block.q_proj, block.k_proj))
        qkv = torch.cat([q * block.scaling, k, block.v_proj.weight])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        return cls(
            _stored(qkv * layer.input_layernorm.weight), _stored(block.o_proj.weight),
            _stored(gate_up * layer.post_attention_layernorm.weight), _stored(mlp.down_proj.weight), mlp.act_fn,
        )  # fmt: skip


class LaidOut:
    """The layers of `model` and its last norm, as they are now.

    Attributes:
        stamp: which weights they were made of; see `laid_out`.
    """

    def __init__(self, model: LlamaModel, stamp: Stamp) -> None:
        config = model.config
        self.stamp = stamp
        self.heads, self.groups = config.num_attention_heads, int(config.num_key_value_heads or 0)
        self.width, self.eps = int(config.head_dim or 0), config.rms_norm_eps
        with torch.no_grad():
            self.layers = [_Layer.of(cast(LlamaDecoderLayer, layer)) for layer in model.layers]
            self.norm = model.norm.weight.detach().clone()
        self.small = torch.tensor(self.eps, device=self.norm.device)

    def turns(self, cos: Tensor, sin: Tensor) -> Tensor:
        """Cosines and sines [T, D] as `run` reads them, complex [T, 1, D / 2]."""
        half = self.width // 2
        return torch.complex(cos[:, :half], sin[:, :half])[:, None].contiguous()

    def run(self, embeds: Tensor, turns: Tensor, cache: Tensor, span: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Hidden states after the last norm [B, L, d] of new positions.

        Args:
            embeds: [B, L, d].
            turns: complex [B, L, 1, D / 2], of their places.
            cache: keys and values [layers, 2, B, G, T, D], of which `span` is written.
            span: first new position in the cache, and the one after the last.
            mask: bool [B, 1, L, end], True where it may be read; None: each position reads those before it and itself.
        """
        hidden = embeds.flatten(0, 1).clone()
        bias = self._bias(mask) if embeds.shape[1] == 1 and mask is not None else None
        for layer, both in zip(self.layers, cache, strict=True):
            q = self._look(layer, hidden, turns, both[..., span[0] : span[1], :])
            held = both[..., : span[1], :]
            read = self._read_one(q, held, bias) if q.shape[1] == 1 else self._read(q, held, mask)
            hidden.addmm_(read.view(-1, layer.out.shape[0]), layer.out)
            gate, up = self._normed(hidden).mm(layer.gate_up).chunk(2, dim=-1)
            hidden.addmm_(layer.act(gate).mul_(up), layer.down)
        return (self._normed(hidden) * self.norm).view_as(embeds)

    def _look(self, layer: _Layer, hidden: Tensor, turns: Tensor, new: Tensor) -> Tensor:
        """Write the keys and values of new positions [2, B, G, L, D]; gives their queries [B, L, H, D]."""
        rows, length, turned = *turns.shape[:2], self.heads + self.groups
        qkv = self._normed(hidden).mm(layer.qkv).view(rows, length, -1, self.width)
        torch.view_as_complex(qkv[:, :, :turned].unflatten(-1, (-1, 2))).mul_(turns)
        new.copy_(qkv[:, :, self.heads :].unflatten(2, (2, -1)).permute(2, 0, 3, 1, 4))
        return qkv[:, :, : self.heads]

    def _read_one(self, q: Tensor, held: Tensor, bias: Tensor | None) -> Tensor:
        """What queries [B, 1, H, D] read of keys and values [2, B, G, end, D], as [B * G, H / G, D]: for one position
        plain products beat any kernel."""
        keys, values = held.flatten(1, 2)
        scores = q.reshape(len(keys), -1, self.width).bmm(keys.transpose(1, 2))
        if bias is not None:
            scores += bias
        return scores.softmax(-1).bmm(values)

    def _bias(self, mask: Tensor) -> Tensor:
        """A mask [B, 1, 1, end] as what is added to scores, [B * G, 1, end]."""
        return additive(mask, torch.float32).expand(-1, self.groups, -1, -1).flatten(0, 1)

    def _read(self, q: Tensor, held: Tensor, mask: Tensor | None) -> Tensor:
        """What queries [B, L, H, D] read of keys and values [2, B, G, end, D], as [B, L, H, D]."""
        keys, values = held
        read = attend(q.transpose(1, 2), keys, values, mask=mask, causal=mask is None, scale=1.0)
        return read.transpose(1, 2).contiguous()

    def _normed(self, hidden: Tensor) -> Tensor:
        """Root mean square norm without its weight; a fused one does not exist on processors."""
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        return hidden * torch.addcmul(self.small, length, length, value=1 / hidden.shape[-1]).rsqrt_()


_KNOWN: WeakKeyDictionary[LlamaModel, LaidOut] = WeakKeyDictionary()


def laid_out(model: LlamaModel) -> LaidOut | None:
    """The layers of `model` laid out, from the last call where no weight has changed since; None for a model that is
    run as it is: one in another type than float32, with adapters or biases, under autocast, or one that is large."""
    weights = [*model.layers.parameters(), model.norm.weight]
    if not _plain(model, weights) or sum(weight.nbytes for weight in weights) > LARGEST:
        return None
    stamp = _stamp(weights)
    known = _KNOWN.get(model)
    if known is None or known.stamp != stamp:
        known = _KNOWN[model] = LaidOut(model, stamp)
    return known


def _stamp(weights: list[nn.Parameter]) -> Stamp:
    """What differs where a weight has changed. A version does not count what is done to `weight.data`, and another
    tensor may lie where one was; so their sums are looked at too, which is one more reading of them."""
    sums = torch.stack([weight.detach().sum() for weight in weights]).tolist()
    return tuple((weight.data_ptr(), weight._version, one) for weight, one in zip(weights, sums, strict=True))


def _plain(model: LlamaModel, weights: list[nn.Parameter]) -> bool:
    """Whether each layer is what its configuration makes it, in single precision and in one place."""
    linear = [one for one in model.layers.modules() if isinstance(one, nn.Linear)]
    place = model.norm.weight.device
    return (
        type(model) is LlamaModel
        and place.type != "meta"
        and not torch.is_autocast_enabled(place.type)
        and len(linear) == 7 * len(model.layers)
        and all(type(one) is nn.Linear and one.bias is None for one in linear)
        and not any(one._forward_hooks or one._forward_pre_hooks for one in model.layers.modules())
        and all(one.dtype == torch.float32 and one.device == place and not one.is_inference() for one in weights)
    )


def _paired(weight: Tensor, width: int) -> Tensor:
    """Rows [heads * D, d] with those that are rotated together side by side."""
    return weight.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)


def _stored(weight: Tensor) -> Tensor:
    """[outputs, inputs] as [inputs, outputs] in memory, which products with few rows read fastest."""
    return weight.detach().t().contiguous()
