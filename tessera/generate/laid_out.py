"""A LLaMA's layers laid out for generation: what reads the same input is one matrix, and each matrix is held as its
products are fastest.

A small model's step is mostly the time between its products, so there are few of them and little in between. Queries
and keys are rotated as complex numbers, for which the channels of each head are put into pairs; their products stay the
same. Legend: B rows, L new positions, T positions of the cache, d width, F inner width of the MLP, H query heads, G
key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from tessera.generate.products import FixedMatrix
from tessera.layers.attention import attend
from tessera.layers.masks import additive

# The layers are copied. Above this many bytes the time between products no longer matters, and memory does.
LARGEST = 2**30
Stamp = tuple[tuple[int, int, float], ...]
L = TypeVar("L", bound="LaidOut | LaidHead")


@dataclass(frozen=True)
class _Layer:
    """One layer."""

    qkv: FixedMatrix  # [(H + 2 G) D, d], after its norm
    out: FixedMatrix  # [d, H D]
    gate_up: FixedMatrix  # [2 F, d], after its norm
    down: FixedMatrix  # [d, F]
    act: Any

    @classmethod
    def of(cls, layer: LlamaDecoderLayer) -> _Layer:
        """A layer of transformers' model."""
        block, mlp = layer.self_attn, layer.mlp
        q, k = (_paired(one.weight, block.head_dim) for one in (block.q_proj, block.k_proj))
        qkv = torch.cat([q, k, block.v_proj.weight])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        return cls(
            FixedMatrix(qkv, layer.input_layernorm.weight), FixedMatrix(block.o_proj.weight),
            FixedMatrix(gate_up, layer.post_attention_layernorm.weight), FixedMatrix(mlp.down_proj.weight), mlp.act_fn,
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
        self.scale = self.width**-0.5  # as LlamaAttention has it
        with torch.no_grad():
            self.layers = [_Layer.of(cast(LlamaDecoderLayer, layer)) for layer in model.layers]
            self.norm = model.norm.weight.detach().clone()
        self.small = torch.tensor(self.eps, device=self.norm.device)

    def turns(self, cos: Tensor, sin: Tensor) -> Tensor:
        """Cosines and sines [T, D] as `run` reads them, complex [T, 1, D / 2]; the scale of scores is in them, half of
        it for queries and half for keys."""
        half = self.width // 2
        return torch.complex(cos[:, :half], sin[:, :half])[:, None] * self.scale**0.5

    def run(
        self, embeds: Tensor, turns: Tensor, cache: Tensor, span: tuple[int, int], mask: Tensor | None,
        last: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states after the last norm [B, L, d] of new positions.

        Args:
            embeds: [B, L, d].
            turns: complex [B, L, 1, D / 2], of their places.
            cache: keys and values [layers, 2, B, G, T, D], of which `span` is written.
            span: first new position in the cache, and the one after the last.
            mask: bool [B, 1, L, end] or [L, end], True where it may be read; None: each position reads those before it
                and itself.
            last: int64 [B], the only position of each row whose state is wanted, which is then [B, 1, d]; without a
                mask it is the last one.
        """
        hidden, rows = embeds.flatten(0, 1).clone(), torch.arange(len(embeds), device=embeds.device)
        bias = self._bias(mask) if embeds.shape[1] == 1 else None
        for number, (layer, both) in enumerate(zip(self.layers, cache, strict=True), start=1):
            q = self._look(layer, hidden, turns, both[..., span[0] : span[1], :])
            if last is not None and number == len(self.layers):  # the others have left their keys and values
                hidden, q = hidden.view_as(embeds)[rows, last], q[rows, last][:, None]
                if mask is not None:
                    bias = self._bias(mask.expand(len(rows), 1, *mask.shape[-2:])[rows, :, last][:, None])
            held = both[..., : span[1], :]
            read = self._read_one(q, held, bias) if q.shape[1] == 1 else self._read(q, held, mask)
            layer.out.add_to(hidden, read.view(-1, layer.out.inputs))
            gate, up = layer.gate_up(self._normed(hidden, layer.gate_up.before)).chunk(2, dim=-1)
            layer.down.add_to(hidden, layer.act(gate).mul_(up))
        return self._normed(hidden, self.norm).view(len(embeds), -1, embeds.shape[-1])

    def _look(self, layer: _Layer, hidden: Tensor, turns: Tensor, new: Tensor) -> Tensor:
        """Write the keys and values of new positions [2, B, G, L, D]; gives their queries [B, L, H, D]."""
        rows, length, turned = *turns.shape[:2], self.heads + self.groups
        qkv = layer.qkv(self._normed(hidden, layer.qkv.before)).view(rows, length, -1, self.width)
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

    def _bias(self, mask: Tensor | None) -> Tensor | None:
        """A mask [B, 1, 1, end] as what is added to scores, [B * G, 1, end]."""
        if mask is None:
            return None
        return additive(mask, torch.float32).expand(-1, self.groups, -1, -1).flatten(0, 1)

    def _read(self, q: Tensor, held: Tensor, mask: Tensor | None) -> Tensor:
        """What queries [B, L, H, D] read of keys and values [2, B, G, end, D], as [B, L, H, D]."""
        keys, values = held
        read = attend(q.transpose(1, 2), keys, values, mask=mask, causal=mask is None, scale=1.0)
        return read.transpose(1, 2).contiguous()

    def _normed(self, hidden: Tensor, weight: Tensor | None) -> Tensor:
        """Root mean square norm; a fused one does not exist on processors."""
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        normed = hidden * torch.addcmul(self.small, length, length, value=1 / hidden.shape[-1]).rsqrt_()
        return normed if weight is None else normed.mul_(weight)


class LaidHead:
    """The layer that scores words, as it is now: hidden states [K, d] -> scores [K, V]."""

    def __init__(self, head: nn.Linear, stamp: Stamp) -> None:
        self.stamp, self.matrix = stamp, FixedMatrix(head.weight)

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.matrix(hidden).mul_(self.matrix.unit)


_KNOWN: WeakKeyDictionary[nn.Module, LaidOut | LaidHead] = WeakKeyDictionary()


def laid_out(model: LlamaModel) -> LaidOut | None:
    """The layers of `model` laid out, from the last call where no weight has changed since; None for a model that is
    run as it is: one in another type than float32, with adapters or biases, under autocast, or one that is large."""
    linear = [one for one in model.layers.modules() if isinstance(one, nn.Linear)]
    weights = [*model.layers.parameters(), model.norm.weight]
    if type(model) is not LlamaModel or len(linear) != 7 * len(model.layers) or not _plain(model.layers, weights):
        return None
    return _known(model, weights, LaidOut)


def laid_head(head: nn.Module) -> nn.Module | LaidHead:
    """The layer that scores words, laid out as `laid_out` does; itself where that one gave None."""
    weights = list(head.parameters())
    return _known(head, weights, LaidHead) if isinstance(head, nn.Linear) and _plain(head, weights) else head


def _known(module: Any, weights: list[nn.Parameter], kind: Callable[[Any, Stamp], L]) -> L:
    stamp = _stamp(weights)
    known: Any = _KNOWN.get(module)
    if known is None or known.stamp != stamp:
        known = _KNOWN[module] = kind(module, stamp)
    return known


def _stamp(weights: list[nn.Parameter]) -> Stamp:
    """What differs where a weight has changed. A version does not count what is done to `weight.data`, and another
    tensor may lie where one was; so their sums are looked at too, which is one more reading of them."""
    sums = torch.stack([weight.detach().sum() for weight in weights]).tolist()
    return tuple((weight.data_ptr(), weight._version, one) for weight, one in zip(weights, sums, strict=True))


def _plain(module: nn.Module, weights: list[nn.Parameter]) -> bool:
    """Whether all linear layers within are what they seem, in single precision, in one place, and not large."""
    linear = [one for one in module.modules() if isinstance(one, nn.Linear)]
    place = weights[0].device
    return (
        place.type != "meta"
        and not torch.is_autocast_enabled(place.type)
        and all(type(one) is nn.Linear and one.bias is None for one in linear)
        and not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
        and all(one.dtype == torch.float32 and one.device == place and not one.is_inference() for one in weights)
        and sum(one.nbytes for one in weights) <= LARGEST
    )


def _paired(weight: Tensor, width: int) -> Tensor:
    """Rows [heads * D, d] with those that are rotated together side by side."""
    return weight.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)
