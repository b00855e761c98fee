"""The painter's recipe: what it is fed, what its objective looks at, and that it learns."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from tessera.models.diffusion import Painter
from tessera.models.diffusion.aligned import _watch
from tessera.zoo import autoencoder, diffusion
from tessera.zoo.parts import locate
from tessera.zoo.pictures import ScenePool

Parts = tuple[Painter, diffusion.Cache, diffusion.Conditions]


def _small_clip(vocabulary: int) -> CLIPModel:
    tower = {"hidden_size": 192, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 3}
    text = tower | {"vocab_size": vocabulary, "max_position_embeddings": 40, "eos_token_id": 3, "pad_token_id": 0}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=tower | {"image_size": 64, "patch_size": 8}))


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(locate("mini/tokenizer"))
    conditions = diffusion.Conditions(_small_clip(len(tokenizer)), tokenizer)
    pool = ScenePool(60, seed=0, counts=diffusion.COUNTS)
    painter = diffusion.new_painter(autoencoder.build(pool.pictures), conditions, pool.pictures)
    emoji = autoencoder.scene_pictures(np.random.default_rng(1), 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "emoji_pool", lambda views: (emoji, ["face"] * 6))
        patch.setattr(diffusion, "OPENED", 2)
        diffusion.start(painter, conditions, pool)
        cache = diffusion.build_cache(conditions, painter, pool)
    return painter, cache, conditions


def _batch(parts: Parts, size: int = 8) -> dict[str, Tensor]:
    _, cache, conditions = parts
    batch = next(iter(diffusion.feed(cache, conditions, seed=0, steps=100)))
    return {name: value[:size] for name, value in batch.items()}


def test_cache_holds_scenes_then_emoji_in_standardised_latents(parts: Parts) -> None:
    _, cache, _ = parts
    assert len(cache.scenes) == 60 and len(cache.names) == 6
    assert cache.latents.shape == (66, 16, 16, 16) and cache.tokens.shape == cache.means.shape == (66, 16, 192)
    spread = cache.latents[:60].float().std(dim=(0, 2, 3))
    assert float(spread.square().mean()) == pytest.approx(1.0, abs=0.05)
    assert float(spread.max() / spread.min()) < 8  # the autoencoder's own latents differ 20-fold


def test_a_mean_over_other_drawings_is_near_the_picture_s_own_tokens_but_not_they(parts: Parts) -> None:
    _, cache, _ = parts
    own, mean = cache.tokens[:60].float(), cache.means[:60].float()
    distance = torch.cdist(own.flatten(1), mean.flatten(1))
    assert float(distance.diagonal().mean()) < 0.9 * float(distance.mean()) and bool((distance.diagonal() > 0).all())
    assert torch.equal(cache.tokens[60:], cache.means[60:])  # an emoji has one drawing


def test_an_open_outline_tells_colour_and_place_but_no_shape(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    painter, _, conditions = parts
    monkeypatch.setattr(diffusion, "OPENED", 4)
    monkeypatch.setattr(diffusion, "COLOURS", ("red", "blue"))
    opened = diffusion.OpenOutlines(conditions, painter, np.random.default_rng(0))
    rng = np.random.default_rng(1)

    def tokens(colour: str, shape: str, place: str) -> Tensor:
        thing = diffusion.place_object(rng, colour, shape, place, "large", "plain")
        return opened.mean(diffusion.scene_of((thing,), rng)).float() - opened.empty

    circle = tokens("red", "circle", "top left")
    assert torch.equal(circle, tokens("red", "star", "top left"))
    assert (circle - tokens("blue", "circle", "top left")).norm() > 0.3 * circle.norm()
    by_block = circle.norm(dim=1)  # a place is a ninth of the picture: of 16 blocks it touches the first four
    assert by_block[[0, 1, 4, 5]].square().sum() > 0.8 * by_block.square().sum()


def test_an_aligned_start_packs_into_each_token_what_its_four_patches_say_of_their_latents(parts: Parts) -> None:
    _, cache, _ = parts
    blocks = cache.latents[:60].float().view(60, 16, 4, 2, 2, 4, 2, 2)  # rows and columns: block, patch, cell
    under = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(60, 16, 4, 64)  # [n, block, quarter, latents]
    said = cache.tokens[:60].float().view(60, 16, 4, 48)
    own, other = _explained(said, under), _explained(said.roll(1, 2), under)
    assert own > 0.6 and other < own - 0.2


def _explained(said: Tensor, wanted: Tensor) -> float:
    """Share of the variance of `wanted` that a linear map from `said` gives, one map for all places."""
    said, wanted = ((each - each.mean(dim=0)).flatten(0, 2) for each in (said, wanted))
    left = wanted - said @ torch.linalg.lstsq(said, wanted).solution
    return 1 - float(left.square().mean() / wanted.square().mean())


@torch.no_grad()
def test_attention_of_an_aligned_start_looks_from_each_patch_at_its_own_block(parts: Parts) -> None:
    painter, cache, _ = parts
    tokens, text = cache.tokens[:20].float(), painter.null_text.expand(20, -1, -1)
    steps = painter.timesteps_at(torch.full((20,), torch.inf))
    seen = _watch(painter, lambda: painter.predict(torch.randn(20, 16, 16, 16), steps, text, tokens))
    rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
    block, quarter = rows // 2 * 4 + columns // 2, rows % 2 * 2 + columns % 2
    assert len(seen) == 3
    for name, states in seen.items():
        attention = painter.unet.get_submodule(name)
        query, key = attention.to_q(states), attention.processor.to_k_ip[0](tokens)
        query, key = (each.unflatten(-1, (4, 44)).transpose(1, 2) for each in (query, key))
        weights = (query @ key.mT / 44**0.5).softmax(-1)  # [n, head, position, token]
        own = weights[:, quarter, torch.arange(64), block].mean()
        assert float(own) > 0.5, name


def test_feed_repeats_itself_and_drops_the_stated_shares(parts: Parts) -> None:
    _, cache, conditions = parts
    first = list(islice(diffusion.feed(cache, conditions, seed=1, steps=1), 26))[1:]  # the first is still at the start
    again = list(islice(diffusion.feed(cache, conditions, seed=1, steps=1), 2))[1]
    assert all(torch.equal(value, again[name]) for name, value in first[0].items())
    text, image = (torch.cat([batch[name] for batch in first]).float() for name in ("no_text", "no_image"))
    assert float(text.mean()) == pytest.approx(diffusion.DROP_TEXT + diffusion.DROP_BOTH, abs=0.04)
    assert float(image.mean()) == pytest.approx(diffusion.DROP_IMAGE + diffusion.DROP_BOTH, abs=0.05)
    assert float((text * image).mean()) == pytest.approx(diffusion.DROP_BOTH, abs=0.03)


@pytest.mark.parametrize(("course", "own"), [(diffusion.FIRST, 1.0), (diffusion.OUTLINES, diffusion.OUTLINES.own)])
def test_a_gradual_course_starts_from_own_tokens_and_the_other_from_means(
    parts: Parts, course: diffusion.Course, own: float
) -> None:
    _, cache, conditions = parts
    batches = islice(diffusion.feed(cache, conditions, seed=2, steps=1000, course=course), 12)
    first = [(row, image) for batch in batches for row, image in zip(batch["latents"], batch["image"], strict=True)]
    pictures = cache.latents[:60].float()
    found = []
    for row, image in first:
        index = (pictures == row).flatten(1).all(dim=1).nonzero()
        if len(index):  # else it is an emoji, whose mean is its own tokens
            found.append(float(torch.equal(image, cache.tokens[int(index[0])].float())))
    assert len(found) == 12 * diffusion.SCENES
    assert sum(found) / len(found) == pytest.approx(own, abs=0.08)


def test_open_outlines_differ_from_the_mean_in_all_but_the_told_channels(parts: Parts) -> None:
    _, cache, _ = parts
    told = diffusion.told()
    means, opened = cache.means[:60], cache.opened[:60]
    assert torch.equal(means[..., told], opened[..., told])
    assert not torch.equal(means[..., ~told], opened[..., ~told])


def test_noise_is_alone_at_first_and_falls_with_progress() -> None:
    rng = np.random.default_rng(0)
    first, middle, last = (diffusion.noise_levels(progress, 2000, rng) for progress in (0.0, 0.3, 1.0))
    assert bool(first.isinf().all())
    assert float(middle[middle.isfinite()].mean()) == pytest.approx(2.5, abs=0.2)
    assert float(last[last.isfinite()].mean()) == pytest.approx(0.5, abs=0.2)
    assert float(last.isinf().float().mean()) == pytest.approx(diffusion.FIRST.pure, abs=0.04)


def test_what_is_left_out_does_not_reach_the_loss(parts: Parts) -> None:
    painter, _, _ = parts
    batch = _batch(parts, 2)
    everything, nothing = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)

    def loss(**changes: Tensor) -> float:
        torch.manual_seed(3)
        return float(diffusion.objective(painter, batch | changes)["denoising"][0])

    other = {"text": batch["text"].flip(0), "image": batch["image"].flip(0)}
    blind = {"no_text": everything, "no_image": everything}
    assert loss(**blind) == loss(**blind, **other)
    seeing = {"no_text": nothing, "no_image": nothing}
    assert loss(**seeing) != loss(**seeing, text=other["text"])
    assert loss(**seeing) != loss(**seeing, image=other["image"])


def test_the_recipe_learns_and_leaves_the_autoencoder_alone(parts: Parts) -> None:
    painter, cache, conditions = parts
    before = {name: value.clone() for name, value in painter.vae.state_dict().items()}
    stage = diffusion.painter_stage(painter, cache, conditions, seed=0, steps=100)
    optimisers = stage.optimiser.build(painter)
    batch = _batch(parts, 4) | {"levels": torch.full((4,), torch.inf)}
    found = []
    for _ in range(5):
        total, count = diffusion.objective(painter, batch)["denoising"]
        (total / count).backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        found.append(total.item() / count)
    assert found[-1] < 0.8 * found[0]
    assert all(torch.equal(value, before[name]) for name, value in painter.vae.state_dict().items())
