"""The decoder stack against torch's own, and its published size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tessera.layers.decoder import DecoderStack


def copy_from_torch(stack: DecoderStack, reference: nn.TransformerDecoder) -> None:
    for block, layer in zip(stack.blocks, reference.layers, strict=True):
        width = layer.linear1.in_features
        pairs = [
            (block.self_norm, layer.norm1), (block.cross_norm, layer.norm2), (block.mlp_norm, layer.norm3),
            (block.self_attention.out, layer.self_attn.out_proj),
            (block.cross_attention.out, layer.multihead_attn.out_proj),
            (block.mlp_in, layer.linear1), (block.mlp_out, layer.linear2),
        ]  # fmt: skip
        for mine, theirs in pairs:
            mine.load_state_dict(theirs.state_dict())
        cross = layer.multihead_attn
        for name in ("weight", "bias"):
            getattr(block.self_attention.qkv, name).data.copy_(getattr(layer.self_attn, f"in_proj_{name}"))
            getattr(block.cross_attention.q, name).data.copy_(getattr(cross, f"in_proj_{name}")[:width])
            getattr(block.cross_attention.kv, name).data.copy_(getattr(cross, f"in_proj_{name}")[width:])
    stack.norm.load_state_dict(reference.norm.state_dict())


@pytest.mark.parametrize("training", [False, True])
def test_stack_equals_torch_transformer_decoder_with_the_same_weights_and_mask(
    training,
):
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    reference = nn.TransformerDecoder(layer, 3, norm=nn.LayerNorm(32)).train(training)
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)
    stack = DecoderStack(32, 3, 4, 64).train(training)
    copy_from_torch(stack, reference)
    x, memory = torch.randn(2, 6, 32), torch.randn(2, 9, 32)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    torch.testing.assert_close(stack(x, memory), reference(x, memory, tgt_mask=mask), atol=2e-5, rtol=1e-4)


def test_published_size_counts_exactly():
    with torch.device("meta"):
        stack = DecoderStack(1024, 12, 16, 4096)
        layer = nn.TransformerDecoderLayer(1024, 16, 4096, batch_first=True)
        reference = nn.TransformerDecoder(layer, 12, norm=nn.LayerNorm(1024))
        narrow = DecoderStack(768, 12, 12, 3072)
    counts = [sum(p.numel() for p in m.parameters()) for m in (stack, reference, narrow)]
    assert counts == [201_562_112, 201_562_112, 113_422_848]


def test_memory_may_have_a_width_of_its_own():
    stack = DecoderStack(32, 1, 4, 64, memory_width=48)
    assert stack(torch.zeros(2, 6, 32), torch.zeros(2, 9, 48)).shape == (2, 6, 32)
