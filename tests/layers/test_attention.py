"""Properties of the one attention function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from tessera.errors import UserError
from tessera.layers import attention
from tessera.layers.attention import LONGEST_FOR_PRODUCTS, attend, products_where_faster


def qkv(length=7, keys=7, heads=4, groups=4, dtype=torch.float32, grad=False):
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, heads, length, 8), (2, groups, keys, 8), (2, groups, keys, 8))
    return [torch.randn(s, generator=draw).to(dtype).requires_grad_(grad) for s in shapes]


def by_hand(q, k, v, allowed):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("kind", ["none", "causal", "shared", "own"])
@pytest.mark.parametrize("products", [False, True])
def test_both_kernels_equal_the_formula_in_value_and_gradient(monkeypatch, products, kind, groups):
    monkeypatch.setattr(attention, "_products_are_faster", lambda *_: products)
    q, k, v = qkv(groups=groups, grad=True)
    tril = torch.ones(7, 7, dtype=torch.bool).tril()
    own = torch.stack([tril, torch.eye(7, dtype=torch.bool)])[:, None]
    allowed = {
        "none": torch.ones_like(tril),
        "causal": tril,
        "shared": tril,
        "own": own,
    }[kind]
    mask = None if kind in ("none", "causal") else allowed
    ours, expected = (
        attend(q, k, v, mask=mask, causal=kind == "causal"),
        by_hand(q, k, v, allowed),
    )
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        *(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (ours, expected)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("products", [False, True])
def test_dropout_takes_out_that_share_of_the_weights_and_scales_up_the_rest(monkeypatch, products):
    monkeypatch.setattr(attention, "_products_are_faster", lambda *_: products)
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 500, 8), torch.zeros(1, 1, 100, 8), torch.ones(1, 1, 100, 8)
    out = attend(q, k, v, dropout=0.25)  # each row: kept weights, 1 / 75 each
    kept = out[..., 0] * 75
    assert torch.allclose(kept, kept.round(), atol=1e-3)
    assert 70 < kept.mean() < 80 and len(kept.round().unique()) > 5
    assert torch.equal(attend(q, k, v), attend(q, k, v))


def test_products_serve_only_short_bf16_training_on_cpu():
    assert attention._products_are_faster(*qkv(dtype=torch.bfloat16, grad=True))
    assert not attention._products_are_faster(*qkv(dtype=torch.bfloat16))
    assert not attention._products_are_faster(*qkv(grad=True))
    assert not attention._products_are_faster(*qkv(keys=513, dtype=torch.bfloat16, grad=True))
    with torch.no_grad():
        assert not attention._products_are_faster(*qkv(dtype=torch.bfloat16, grad=True))


def test_other_libraries_train_by_products_in_bf16_and_draw_by_the_fused_kernel():
    q = torch.randn(1, 2, 8, 4, requires_grad=True)
    cpu = torch.device("cpu")

    def gradient_of(positions: int) -> str:
        with torch.autocast("cpu", torch.bfloat16), products_where_faster(positions, cpu):
            out = F.scaled_dot_product_attention(*[x.to(torch.bfloat16) for x in (q, q, q)])
        return "flash" if "Flash" in type(out.grad_fn).__name__ else "products"

    assert gradient_of(8) == "products"
    assert gradient_of(LONGEST_FOR_PRODUCTS + 1) == "flash"
    with products_where_faster(8, cpu):  # fp32 shows no gap
        out = F.scaled_dot_product_attention(q, q, q)
    assert "Flash" in type(out.grad_fn).__name__


def test_a_row_that_may_read_nothing_stays_finite():
    q, k, v = qkv(dtype=torch.bfloat16, grad=True)
    out = attend(q, k, v, mask=torch.zeros(7, 7, dtype=torch.bool))
    out.sum().backward()
    assert out.isfinite().all() and q.grad.isfinite().all()


def test_causal_and_mask_together_are_refused():
    with pytest.raises(ValueError, match="not both"):
        attend(*qkv(), mask=torch.ones(7, 7, dtype=torch.bool), causal=True)


def tiny_llama(implementation, **fields):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=implementation,
        **fields,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("padded", [False, True])
def test_llama_gives_the_same_logits_as_with_sdpa(padded):
    ids = torch.arange(20).view(2, 10)
    mask = torch.ones_like(ids)
    mask[1, :3] = 1 - int(padded)
    ours, theirs = (tiny_llama(name)(ids, attention_mask=mask).logits for name in ("tessera", "sdpa"))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=1e-4)


def test_llama_generates_the_same_tokens_with_a_static_cache():
    ids = torch.arange(1, 9).view(1, 8)
    kwargs = {
        "max_new_tokens": 5,
        "do_sample": False,
        "cache_implementation": "static",
        "disable_compile": True,
    }
    assert torch.equal(*(tiny_llama(name).generate(ids, **kwargs) for name in ("tessera", "sdpa")))


def test_llama_takes_a_ready_4d_mask():
    ids = torch.arange(20).view(2, 10)
    mask = torch.ones(10, 10, dtype=torch.bool).tril().expand(2, 1, 10, 10)
    model = tiny_llama("tessera")
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_clip_gives_the_same_features_as_with_sdpa():
    features = []
    for name in ("tessera", "sdpa"):
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            attn_implementation=name,
        )
        model = CLIPVisionModel(config).eval()
        features.append(model(torch.linspace(-1, 1, 2 * 3 * 256).view(2, 3, 16, 16)).last_hidden_state)
    torch.testing.assert_close(*features, atol=1e-5, rtol=1e-4)


def test_attention_dropout_is_refused_in_one_sentence():
    model = tiny_llama("tessera", attention_dropout=0.1).train()
    with pytest.raises(UserError, match="attention dropout 0.1 is not supported"):
        model(torch.arange(5)[None])


def test_scores_that_are_to_be_bounded_are_refused_and_not_left_unbounded():
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(UserError, match="take attn_implementation='eager'"):
        AttentionInterface()[attention.NAME](torch.nn.Module(), x, x, x, None, softcap=50.0)
