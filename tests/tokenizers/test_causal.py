"""The causal image tokenizer and the detokenizer: order of the embeddings, shapes, published sizes."""

from __future__ import annotations

import pytest
import torch

from tessera.tokenizers.causal import CausalImageTokenizer, ImageDetokenizer, StackSize

TINY = StackSize(width=24, depth=2, heads=2, mlp_width=48)
PUBLISHED = StackSize(width=1024, depth=12, heads=16, mlp_width=4096)


def count(module):
    return sum(p.numel() for p in module.parameters())


def tiny_tokenizer():
    torch.manual_seed(0)
    return CausalImageTokenizer(TINY, feature_width=20, num_embeddings=6, embed_width=32).eval()


def tiny_detokenizer():
    torch.manual_seed(0)
    return ImageDetokenizer(TINY, embed_width=32, image=(3, 10), text=(5, 12)).eval()


@pytest.mark.light("vl-gpt", "exact")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("changed", range(6))
def test_changing_query_k_leaves_earlier_embeddings_bit_identical(changed, training):
    tokenizer, features = tiny_tokenizer().train(training), torch.randn(3, 17, 20)
    before = tokenizer(features).detach().clone()
    tokenizer.queries.data[changed] += 0.5
    after = tokenizer(features).detach()
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


def test_detokenizer_positions_are_causal_too():
    detokenizer, embeds = tiny_detokenizer(), torch.randn(2, 6, 32)
    before = detokenizer(embeds)
    detokenizer.queries.data[4] += 0.5  # the second text position
    after = detokenizer(embeds)
    assert torch.equal(before.image, after.image) and torch.equal(before.text[:, :1], after.text[:, :1])
    assert not torch.equal(before.text[:, 1:], after.text[:, 1:])


def test_every_embedding_reads_every_patch():
    tokenizer, features = tiny_tokenizer(), torch.randn(1, 17, 20)
    before = tokenizer(features)
    features[:, 16] += 1
    assert ((tokenizer(features) - before).abs().amax(-1) > 0).all()


def test_shapes_are_those_of_the_docstrings():
    embeds = tiny_tokenizer()(torch.randn(3, 17, 20))
    image, text = tiny_detokenizer()(embeds)
    assert (embeds.shape, image.shape, text.shape) == ((3, 6, 32), (3, 3, 10), (3, 5, 12))


def test_queries_start_from_a_normal_of_the_given_width():
    torch.manual_seed(0)
    tokenizer = CausalImageTokenizer(
        StackSize(256, 1, 4, 8), feature_width=8, num_embeddings=64, embed_width=8, query_std=0.02
    )
    assert tokenizer.queries.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.light("vl-gpt", "size")
def test_published_tokenizer_and_detokenizer_count_exactly():
    with torch.device("meta"):
        tokenizer = CausalImageTokenizer(PUBLISHED, feature_width=1024, num_embeddings=32, embed_width=4096)
        detokenizer = ImageDetokenizer(PUBLISHED, embed_width=4096, image=(16, 768), text=(77, 768))
    assert (count(tokenizer), count(detokenizer)) == (205_793_280, 207_427_072)
    with torch.device("meta"):
        assert tokenizer(torch.empty(2, 257, 1024)).shape == (2, 32, 4096)
