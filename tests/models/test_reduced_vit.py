"""The ViT with fewer tokens: unchanged where none is taken away, ToMe and EViT by hand, counts, sentences."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, ViTForImageClassification
from transformers import ViTConfig as PublishedConfig

from tessera.errors import UserError
from tessera.models.classifier import ImageClassifier
from tessera.models.reduced_vit import ReducedViT
from tessera.reduce import REDUCERS, Reduction
from tessera.study.counting import macs
from tessera.vision.hf import PublishedBackbone, PublishedVisionConfig
from tessera.vision.registry import create
from tessera.vision.vit import PlainViT
from tests.reduce.test_reducers import scattered

SMALL = {"image_size": 32, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}


def plain(**fields) -> PlainViT:
    torch.manual_seed(0)
    return create("vit-mini", **{**SMALL, "initializer_range": 0.3, **fields}).eval()


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", REDUCERS)
@torch.no_grad()
def test_keeping_all_tokens_gives_the_plain_model_s_answers_bit_for_bit(name: str, pictures: Tensor) -> None:
    model = plain()
    reduced = ReducedViT.over(model, reducer=name, keep=1.0)
    wanted, found = model(pictures, output_hidden_states=True), reduced(pictures, output_hidden_states=True)
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.pooled, wanted.pooled)
    assert found.grid == (8, 8)
    assert all(map(torch.equal, found.hidden_states, wanted.hidden_states))


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", ["row", "column", "tome", "nearest"])
@torch.no_grad()
def test_tokens_that_only_change_order_leave_the_logits(name: str, pictures: Tensor) -> None:
    model = ImageClassifier.over(plain(), ("a", "b", "c")).eval()
    options = {"tau": 1e-6} if name in ("row", "column") else {}
    reduced = model.reduced(reducer=name, reducer_options=options, keep=1.0)
    eyes = (
        reduced.backbone
    )  # in which as many tokens as there are make no step; here the reducer is called all the same
    x, grid = eyes.embed(pictures)
    for block in eyes.blocks:
        q, k, _ = block.attn.project(block.norm1(x))
        keys = k[:, :, 1:].mean(1)
        found = eyes.reducer(x[:, 1:], 64, keys=keys, importance=torch.rand(2, 64), grid=grid)
        x = block(torch.cat([x[:, :1], found.tokens], 1))
    logits = reduced.head(eyes.norm(x)[:, 0])
    torch.testing.assert_close(logits, model(pictures).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.light("token-transforming", "exact")
@torch.no_grad()
def test_tome_in_every_block_equals_its_scatter_form_with_proportional_attention(pictures: Tensor) -> None:
    model = plain()
    reduced = ReducedViT.over(model, reducer="tome", reduce_blocks=list(range(4)), remove=9)
    x, _ = model.embed(pictures)
    sizes = torch.ones(2, x.shape[1])
    for block in model.blocks:
        q, k, v = block.attn.project(block.norm1(x))
        scores = q @ k.mT * q.shape[-1] ** -0.5 + sizes.log()[:, None, None]
        x = x + block.attn.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x, sizes = scattered(x, k.mean(1), sizes, 9)
        x = x + block.mlp(block.norm2(x))
    found = reduced(pictures)
    torch.testing.assert_close(found.tokens, model.norm(x)[:, 1:], atol=1e-4, rtol=1e-4)
    assert found.grid == (1, 64 - 36)


@pytest.mark.light("token-transforming", "exact")
@torch.no_grad()
def test_evit_in_a_block_equals_direct_code_on_the_whole_attention_map(pictures: Tensor) -> None:
    model = plain()
    x, _ = model.embed(pictures)
    for place, block in enumerate(model.blocks):
        q, k, v = block.attn.project(block.norm1(x))
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        x = x + block.attn.out((attention @ v).transpose(1, 2).flatten(2))
        if place == 1:
            importance = attention[:, :, 0, 1:].mean(1)
            best = importance.topk(31, dim=1).indices.sort(1).values
            rest = importance.scatter(1, best, 0.0)
            fused = (rest / rest.sum(1, keepdim=True))[:, None] @ x[:, 1:]
            kept = x[:, 1:].gather(1, best[..., None].expand(-1, -1, 24))
            x = torch.cat([x[:, :1], kept, fused], 1)
        x = x + block.mlp(block.norm2(x))
    reduced = ReducedViT.over(model, reducer="evit", reduce_blocks=[1], number=32, proportional=False)
    torch.testing.assert_close(reduced(pictures).pooled, model.norm(x)[:, 0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_proportional_attention_is_a_switch_that_matters_where_sizes_differ_and_only_there(pictures: Tensor) -> None:
    model = plain()
    for name, matters in (("column", True), ("tome", True), ("prune", False), ("random", False)):
        with_sizes, without = (
            ReducedViT.over(model, reducer=name, proportional=switch)(pictures).pooled for switch in (True, False)
        )
        assert torch.allclose(with_sizes, without, atol=1e-5) != matters


@torch.no_grad()
def test_tokens_are_those_that_are_left_or_lie_on_the_picture_s_grid_again(pictures: Tensor) -> None:
    model = plain()
    for name, kind in REDUCERS.items():
        found = ReducedViT.over(model, reducer=name, keep=0.6)(pictures)
        assert found.tokens.shape[1] == found.grid[0] * found.grid[1] <= 15
        if kind.expands:
            back = ReducedViT.over(model, reducer=name, keep=0.6, unreduce=True)(pictures)
            assert (back.tokens.shape, back.grid) == ((2, 64, 24), (8, 8))
            assert torch.equal(back.pooled, found.pooled)
    with pytest.raises(UserError, match="'row' made cannot be put back on the grid"):
        ReducedViT.over(model, reducer="row", unreduce=True)


@pytest.mark.light("token-transforming", "exact")
@pytest.mark.parametrize("name", ["prune", "random"])
@torch.no_grad()
def test_a_dropped_place_reads_the_nearest_kept_token_on_the_grid(name: str, pictures: Tensor) -> None:
    model = plain()
    short, back = (ReducedViT.over(model, reducer=name, keep=0.6, unreduce=unreduce) for unreduce in (False, True))
    reductions: list[Reduction] = []
    usual = type(short.reducer).__call__

    def noting(*given: Any, **named: Any) -> Reduction:
        reductions.append(usual(*given, **named))
        return reductions[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(short.reducer), "__call__", noting)
        held = short(pictures).tokens
    found = back(pictures).tokens
    for row in range(2):
        places = torch.arange(64)
        for one in reductions:
            places = places[one.centres[row]]
        for place in range(64):
            apart = [(place // 8 - int(at) // 8) ** 2 + (place % 8 - int(at) % 8) ** 2 for at in places]
            assert torch.equal(found[row, place], held[row, apart.index(min(apart))])


@pytest.mark.light("token-transforming", "exact")
@torch.no_grad()
def test_a_picture_s_answer_does_not_hang_on_its_batch_nor_on_its_size_in_training(pictures: Tensor) -> None:
    reduced = ReducedViT.over(plain())
    torch.testing.assert_close(reduced(pictures).pooled[1:], reduced(pictures[1:]).pooled, atol=1e-5, rtol=1e-5)
    assert reduced(torch.randn(1, 3, 48, 24)).tokens.shape == (1, 21, 24)  # of 72


def closed_form(config, counts: dict[int, int], tokens: int, classes: int) -> tuple[int, int]:
    """Multiply-adds of the encoder with its head, and those that make W with centres far apart and head-mean keys."""
    width, heads = config.hidden_size, config.num_attention_heads
    encoder, making, now = tokens * width * 3 * config.patch_size**2 + width * classes, 0, tokens
    for block in range(config.num_hidden_layers):
        length = 1 + now
        encoder += 4 * length * width**2 + 2 * length**2 * width
        if block in counts:
            left = counts[block]
            # the class token's row; similarities; the product; the sizes
            making += length * width + left * now * (width // heads) + left * now * width + left * now
            now = left
        encoder += 2 * (1 + now) * width * round(width * config.mlp_ratio)
    return encoder, making


@pytest.mark.light("token-transforming", "size")
@pytest.mark.parametrize("fields", [{"keep": 0.65}, {"remove": 12, "reduce_blocks": list(range(4))}])
def test_traced_multiply_adds_are_those_of_the_closed_form_with_and_without_w(fields: dict) -> None:
    with torch.device("meta"):
        model = ImageClassifier.over(plain(), [str(place) for place in range(10)])
        column, random = (model.reduced(reducer=name, **fields) for name in ("column", "random"))
        picture = {"pixel_values": torch.empty(1, 3, 32, 32)}
        counts = column.backbone.schedule.counts(64, 4)
        encoder, making = closed_form(column.backbone.config, counts, 64, 10)
        assert macs(random, picture) == pytest.approx(encoder, rel=0.005)
        assert macs(column, picture) - macs(random, picture) == pytest.approx(making, rel=0.005)


def test_it_saves_and_loads_and_learns(tmp_path, pictures: Tensor) -> None:
    reduced = ReducedViT.over(plain(), reducer="nearest", reducer_options={"iterations": 2}, keep=[0.5, 0.6, 0.7])
    reduced.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, ReducedViT)
    assert again.reducer == reduced.reducer
    assert torch.equal(again.eval()(pictures).tokens, reduced(pictures).tokens)
    for name in ("column", "tome", "row"):
        gradients = []
        model = ReducedViT.over(reduced, reducer=name).train()
        for checkpointing in (False, True):
            model.zero_grad()
            if checkpointing:
                model.gradient_checkpointing_enable()
            model(pictures).pooled.square().sum().backward()
            gradients.append(model.patches.weight.grad.clone())
        assert gradients[0].abs().sum() > 0
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.light("token-transforming", "weights")
def test_published_weights_answer_as_transformers_does_and_stay_the_same_in_number(tmp_path, pictures: Tensor) -> None:
    from tessera.papers.token_transforming import _classifier

    fields = {key: value for key, value in SMALL.items() if key != "hidden_size"}
    labels = {0: "crane", 1: "owl", 2: "crane"}
    theirs = ViTForImageClassification(
        PublishedConfig(hidden_size=24, intermediate_size=96, id2label=labels, layer_norm_eps=1e-6, **fields)
    ).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}))
    ours = _classifier(tmp_path)
    assert ours.config.classes == ("crane (0)", "owl", "crane (2)")
    assert list(ours.config.image_mean) == [0.4] * 3
    with torch.no_grad():
        wanted = theirs(pictures).logits
        torch.testing.assert_close(ours(pictures).logits, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.reduced(keep=1.0)(pictures).logits, wanted, atol=1e-5, rtol=1e-5)
    assert ours.reduced().num_parameters() == theirs.num_parameters()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"reducer": "colum"}, "no token reducer 'colum'; did you mean 'column'"),
        ({"reduce_blocks": [2, 4]}, "in block 4; this encoder has blocks 0 to 3"),
        ({"keep": 2.0}, "keep is 2.0; it is above 0 and at most 1"),
        ({"reducer_options": {"ta": 1}}, "'column' has no option 'ta'; did you mean 'tau'"),
        ({"keep": "half"}, "tokens cannot be reduced so: .*keep"),
    ],
)
def test_fields_that_cannot_be_are_refused_with_a_sentence(fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ReducedViT.over(plain(), **fields)


def test_more_tokens_than_a_picture_has_and_other_backbones_are_refused(pictures: Tensor) -> None:
    with pytest.raises(UserError, match="has 64 tokens and cannot leave 65"):
        ReducedViT.over(plain(), number=65)(pictures)
    with pytest.raises(UserError, match="in a plain ViT, and this classifier has a CvT"):
        ImageClassifier.over("cvt-mini", ("a", "b")).reduced()
    with (
        torch.device("meta"),
        pytest.raises(UserError, match="has a CLIPVisionModel; take a ViT, DeiT, ViT-MAE or DIN"),
    ):
        ImageClassifier.over(PublishedBackbone(PublishedVisionConfig()), ("a", "b")).reduced()
