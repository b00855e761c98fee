"""The aligned start: every embedding holds its own block of the picture before the first step."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.layers.aligning import place_readers, quarters
from tessera.models.diffusion.positions import cell_centres, sine_code
from tessera.tokenizers.aligned import aligned_start
from tessera.tokenizers.causal import CausalImageTokenizer, ImageDetokenizer, StackSize

SIZE = StackSize(width=48, depth=2, heads=4, mlp_width=32)
PICTURES, PATCHES, FEATURES, CONTENTS = 400, 16, 24, 5


def made(embeddings: int = 4) -> tuple[CausalImageTokenizer, ImageDetokenizer]:
    torch.manual_seed(0)
    tokenizer = CausalImageTokenizer(SIZE, feature_width=FEATURES, num_embeddings=embeddings, embed_width=48)
    return tokenizer, ImageDetokenizer(SIZE, embed_width=48, image=(4, 4 * CONTENTS), text=(6, 12))


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose first channels are their place, class token first; and a condition of what the others say."""
    generator = torch.Generator().manual_seed(seed)
    said = torch.randn(PICTURES, PATCHES, FEATURES - 12, generator=generator)
    places = 2 * sine_code(cell_centres(4, 4), 12).expand(PICTURES, -1, -1)
    features = torch.cat([places, said], dim=-1)
    contents = said[:, quarters(2).flatten(), :CONTENTS].unflatten(1, (4, 4)).flatten(2)
    return torch.cat([torch.randn(PICTURES, 1, FEATURES, generator=generator), features], dim=1), contents


def explained(estimate: torch.Tensor, target: torch.Tensor) -> float:
    return 1 - float((estimate - target).square().mean() / (target - target.mean(dim=0)).square().mean())


def test_other_pictures_conditions_are_estimated_before_the_first_step() -> None:
    tokenizer, detokenizer = made()
    aligned_start(tokenizer, detokenizer, *data(0))
    features, target = data(1)
    assert explained(detokenizer(tokenizer(features)).image, target) > 0.9


def test_an_embedding_follows_its_own_block_alone() -> None:
    tokenizer, detokenizer = made()
    aligned_start(tokenizer, detokenizer, *data(0))
    features, _ = data(1)
    before = tokenizer(features)
    features[:, 1 + quarters(2)[2], 12:] += 1.0
    moved = (tokenizer(features) - before).square().mean(dim=(0, 2)).sqrt()
    assert float(moved[2]) > 20 * float(moved[[0, 1, 3]].max())


def test_the_text_condition_still_learns_from_every_weight() -> None:
    tokenizer, detokenizer = made()
    aligned_start(tokenizer, detokenizer, *data(0))
    detokenizer(tokenizer(data(1)[0][:8])).text.square().mean().backward()
    first = tokenizer.decoder.blocks[0].cross_attention
    assert float(first.kv.weight.grad.abs().max()) > 0 and float(detokenizer.text_head.weight.grad.abs().max()) > 0


def test_sizes_without_room_are_named_with_the_way_out() -> None:
    tokenizer, detokenizer = made(embeddings=3)
    with pytest.raises(UserError, match=r"no room in 3 embeddings .* set aligned=0"):
        aligned_start(tokenizer, detokenizer, *data(0))


def test_place_readers_find_the_place_of_a_state() -> None:
    features, _ = data(0)
    queries, weight, bias = place_readers(features, rank=16)
    scores = (features @ weight.T + bias) @ queries.T  # [n, states, places]
    assert float((scores[:, 1:].argmax(dim=2) == torch.arange(1, 17)).float().mean()) > 0.999
