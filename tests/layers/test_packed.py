"""Attention inside the sequences of packed rows."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tessera.layers.attention import attend
from tessera.layers.masks import block_causal, positions_within
from tessera.layers.packed import Packing, packed_rows

# Lengths 1, 2, 14, 19 and 40, two equal ones, padding at the end, and a row without any.
SEGMENTS = torch.tensor(
    [[1] * 14 + [2] * 19 + [3] * 1 + [4] * 2 + [0] * 5, [1] * 1 + [2] * 40, [1] * 14 + [2] * 14 + [3] * 13]
)


def qkv(groups: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 41, 8), (3, groups, 41, 8), (3, groups, 41, 8))
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("groups", [4, 2])
def test_it_equals_attention_under_the_mask_in_value_and_gradient(groups: int) -> None:
    q, k, v = qkv(groups)
    ours = Packing.of(SEGMENTS).attend(q, k, v, scale=0.3).transpose(1, 2)
    masked = attend(q, k, v, mask=block_causal(SEGMENTS), scale=0.3)
    torch.testing.assert_close(ours, masked, atol=1e-6, rtol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    found, expected = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (ours, masked))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_every_position_is_gathered_and_comes_back_and_the_rest_is_filling() -> None:
    packing = Packing.of(SEGMENTS)
    everything = torch.arange(SEGMENTS.numel())
    assert torch.equal(packing.places[packing.back], everything)
    real = torch.ones(len(packing.places), dtype=torch.bool).index_fill_(0, packing.fillers, False)
    assert torch.equal(packing.places[real].sort().values, everything)
    assert sum(number * longest for number, longest in packing.groups) == len(packing.places)


def test_filling_is_at_most_a_half_of_what_longer_sequences_hold() -> None:
    lengths = torch.arange(16, 600)
    rows = torch.zeros(len(lengths), 600, dtype=torch.int64)
    for row, length in zip(rows, lengths.tolist(), strict=True):
        row[:length] = 1
    packing = Packing.of(torch.cat([rows[:, :-1], rows[:, :1] + 1], 1))
    assert len(packing.fillers) < 0.5 * len(packing.places)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_language_model_reads_packed_rows_as_under_the_mask(checkpointing: bool) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=40, attn_implementation="tessera")).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(0, 40, SEGMENTS.shape, generator=torch.Generator().manual_seed(0))

    def learned(**rows: object) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        logits = model(ids, position_ids=positions_within(SEGMENTS), use_cache=False, **rows).logits
        logits.square().mean().backward()
        return logits, model.model.layers[0].self_attn.k_proj.weight.grad.clone()

    ways = [learned(**packed_rows(SEGMENTS, way)) for way in ("tessera", "eager")]
    for mine, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_rows_that_are_one_sequence_each_are_attended_to_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(2)
    expected = attend(q, k, v, causal=True)
    packing = Packing.of(torch.ones(3, 41, dtype=torch.int64))
    monkeypatch.setattr("tessera.layers.packed._Gather.apply", None)
    assert torch.equal(packing.attend(q, k, v).transpose(1, 2), expected)
