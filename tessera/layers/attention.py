"""The one attention function of the house, and its name among transformers' attention implementations.

Legend: B batch, H query heads, G key-value heads (G divides H), L query positions, S key positions, D head
width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tessera.errors import UserError
from tessera.layers.autocast import as_autocast
from tessera.layers.masks import additive

NAME = "tessera"
# Above this many positions the score matrix no longer fits the cache and the fused kernel wins again.
LONGEST_FOR_PRODUCTS = 512
_LISTENER: ContextVar[Callable[[Tensor, Tensor], None] | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Within, `listener` is told the queries [B, H, L, D] and keys [B, G, S, D] of each layer of transformers' models
    that has this attention, as they are multiplied: turned by position, those of a cache first."""
    before = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(before)


@contextmanager
def products_where_faster(positions: int, device: torch.device) -> Iterator[None]:
    """Within, modules of other libraries attend by plain products where `attend` would, under autocast.

    Args:
        positions: the longest run of them that is attended to.
        device: on which.
    """
    (sample,) = as_autocast(torch.empty(0, device=device))
    if sample.dtype == torch.bfloat16 and _products_train_faster(positions, device):
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention by the kernel that was measured to be fastest here.

    Args:
        q: [B, H, L, D].
        k: [B, G, S, D]; each key-value head serves H / G query heads.
        v: [B, G, S, D].
        mask: broadcastable to [B, H, L, S]; bool (True = may be read) or a float that is added to the scores.
        causal: query i reads keys 0..i. Not together with `mask`.
        scale: factor on the scores; D ** -0.5 by default.
        dropout: share of the weights that is dropped now; the caller gives 0 in evaluation.

    Returns:
        [B, H, L, D].
    """
    if causal and mask is not None:
        raise ValueError("give `mask` or `causal`, not both: fold the causal pattern into the mask")
    # As the fused kernel would cast them: queries and keys that were turned by position come in single precision.
    q, k, v = as_autocast(q, k, v)
    if _products_are_faster(q, k, v):
        return _by_products(q, k, v, mask, causal, q.shape[-1] ** -0.5 if scale is None else scale, dropout)
    if mask is not None and mask.dtype not in (torch.bool, q.dtype):
        mask = mask.to(q.dtype)
    shared_heads = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=shared_heads
    )


def _products_are_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    # Measured on two cores with AMX: forward + backward of the fused bf16 kernel takes 1.7 to 5 times as long
    # as plain products at 64 to 512 positions, while its forward alone is the fastest of all. fp32 shows no
    # such gap. Likewise on a core with avx512_bf16.
    if q.dtype != torch.bfloat16 or not any(x.requires_grad for x in (q, k, v)):
        return False
    return _products_train_faster(max(q.shape[2], k.shape[2]), q.device)


def _products_train_faster(positions: int, device: torch.device) -> bool:
    return device.type == "cpu" and torch.is_grad_enabled() and positions <= LONGEST_FOR_PRODUCTS


def _by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, dropout: float
) -> Tensor:
    batch, heads, length, width = q.shape
    if k.shape[1] != heads:
        k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    if causal:
        mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril()
    bias = q.new_zeros(()) if mask is None else _bias(mask, batch, heads, q.dtype)
    # beta = 0 makes baddbmm ignore the bias altogether.
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=int(mask is not None), alpha=scale)
    weights = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
    return torch.bmm(weights, v).view(batch, heads, length, width)


def _bias(mask: Tensor, batch: int, heads: int, dtype: torch.dtype) -> Tensor:
    """The mask as a float [1 or B * H, L, S] that is added to the scores."""
    if mask.dtype == torch.bool:
        mask = additive(mask, dtype)
    mask = mask.to(dtype).reshape((1,) * (4 - mask.dim()) + mask.shape)
    if mask.shape[:2] == (1, 1):
        return mask[0]
    return mask.expand(batch, heads, -1, -1).flatten(0, 1)


def _attention_for_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    within: Callable[..., Tensor] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """`attend` in the signature of transformers: returns [B, L, H, D] and no weights.

    Args:
        within: attends inside the sequences of packed rows, `Packing.attend`; the mask then says nothing.

    Raises:
        UserError: dropout, or scores that are bounded (Gemma 2) or share out to a sink (gpt-oss).
    """
    if softcap is not None or s_aux is not None:
        raise UserError(
            f"attn_implementation={NAME!r} neither bounds scores nor has sinks, as this model asks;"
            " take attn_implementation='eager'"
        )
    if dropout:
        raise UserError(
            f"attention dropout {dropout} is not supported by attn_implementation={NAME!r};"
            " set attention_dropout to 0 or take attn_implementation='sdpa'"
        )
    if (listener := _LISTENER.get()) is not None:
        listener(query, key)
    if within is not None:
        return within(query, key, value, scale=scaling), None
    length = query.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and length > 1
    if causal:  # an empty preallocated cache is longer than the prompt; its unwritten tail is never read
        key, value = key[:, :, :length], value[:, :, :length]
    out = attend(query, key, value, mask=attention_mask, causal=causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


# Masks are made as for sdpa: bool [B, 1, L, S], or None where causality alone is enough. Ready 4-D masks pass
# through.
AttentionInterface.register(NAME, _attention_for_transformers)
AttentionMaskInterface.register(NAME, sdpa_mask)
