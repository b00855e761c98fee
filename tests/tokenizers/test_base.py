"""Every image tokenizer decodes what it encodes, continuous ones and those with a codebook."""

from __future__ import annotations

import torch

from tessera.tokenizers.base import ImageTokenizer, Tokens
from tests.models import vlgpt_tiny, vq_tiny


def test_a_tokenizer_decodes_what_it_encodes() -> None:
    continuous = vlgpt_tiny.tiny_tokenizer().eval()
    inputs = continuous.patch_features(vlgpt_tiny.pixels(2))
    both: list[tuple[ImageTokenizer, torch.Tensor]] = [
        (continuous, inputs), (vq_tiny.tokenizer(), vq_tiny.pictures(2))
    ]  # fmt: skip
    for tokenizer, given in both:
        found = tokenizer.encode(given)
        embeds = found.embeds if isinstance(found, Tokens) else found
        painted = tokenizer.decode(embeds)
        assert len(embeds) == 2 and embeds.dim() == 3
        assert len(painted[0] if isinstance(painted, tuple) else painted) == 2
        if isinstance(found, Tokens):
            assert found.grid is not None and found.grid[0] * found.grid[1] == found.ids.shape[1]
            torch.testing.assert_close(tokenizer.decode(found.ids), painted)
