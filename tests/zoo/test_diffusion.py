"""The painter's recipe: what it is fed, what its objective looks at, and that it learns."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from tessera.models.diffusion import Painter
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
        cache = diffusion.build_cache(conditions, painter, pool)
    return painter, cache, conditions


def _batch(parts: Parts, size: int = 8) -> dict[str, Tensor]:
    _, cache, conditions = parts
    batch = next(iter(diffusion.feed(cache, conditions, seed=0, steps=100)))
    return {name: value[:size] for name, value in batch.items()}


def test_cache_holds_scenes_then_emoji_in_standardised_latents(parts: Parts) -> None:
    _, cache, _ = parts
    assert len(cache.scenes) == 60 and len(cache.names) == 6
    assert cache.latents.shape == (66, 16, 16, 16) and cache.patches.shape == (66, 65, 192)
    spread = cache.latents[:60].float().std(dim=(0, 2, 3))
    assert float(spread.square().mean()) == pytest.approx(1.0, abs=0.05)
    assert float(spread.max() / spread.min()) < 8  # the autoencoder's own latents differ 20-fold


def test_feed_repeats_itself_and_drops_the_stated_shares(parts: Parts) -> None:
    _, cache, conditions = parts
    first = list(islice(diffusion.feed(cache, conditions, seed=1, steps=100), 25))
    again = next(iter(diffusion.feed(cache, conditions, seed=1, steps=100)))
    assert all(torch.equal(value, again[name]) for name, value in first[0].items())
    text, image = (torch.cat([batch[name] for batch in first]).float() for name in ("no_text", "no_image"))
    assert float(text.mean()) == pytest.approx(diffusion.DROP_TEXT + diffusion.DROP_BOTH, abs=0.04)
    assert float(image.mean()) == pytest.approx(diffusion.DROP_IMAGE + diffusion.DROP_BOTH, abs=0.05)
    assert float((text * image).mean()) == pytest.approx(diffusion.DROP_BOTH, abs=0.03)


def test_noise_is_pure_in_the_stated_share_and_falls_with_progress() -> None:
    rng = np.random.default_rng(0)
    early, late = (diffusion.noise_levels(progress, 2000, rng) for progress in (0.0, 1.0))
    assert float(early.isinf().float().mean()) == pytest.approx(diffusion.PURE_NOISE, abs=0.04)
    assert float(early[early.isfinite()].mean()) == pytest.approx(2.5, abs=0.2)
    assert float(late[late.isfinite()].mean()) == pytest.approx(0.5, abs=0.2)


def test_what_is_left_out_does_not_reach_the_loss(parts: Parts) -> None:
    painter, _, _ = parts
    batch = _batch(parts, 2)
    everything, nothing = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)

    def loss(**changes: Tensor) -> float:
        torch.manual_seed(3)
        return float(diffusion.objective(painter, batch | changes)["denoising"][0])

    other = {"text": batch["text"].flip(0), "patches": batch["patches"].flip(0)}
    blind = {"no_text": everything, "no_image": everything}
    assert loss(**blind) == loss(**blind, **other)
    seeing = {"no_text": nothing, "no_image": nothing}
    assert loss(**seeing) != loss(**seeing, text=other["text"])
    assert loss(**seeing) != loss(**seeing, patches=other["patches"])


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
