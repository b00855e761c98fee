"""A U-Net as the backbone of perception: its pyramid against the official code, identities, heads, gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tessera.data.dense import DenseScenes
from tessera.errors import UserError
from tessera.models.diffusion.perception import PerceptionConfig, PerceptionModel
from tessera.models.diffusion.perception.heads import DepthDecoder, ReferringDecoder, SemanticFPN
from tessera.models.diffusion.perception.inputs import LatentEncoder, TextAdapter, unet_input
from tessera.models.diffusion.perception.pyramid import UNetPyramid
from tessera.objectives.dense import dense_loss
from tessera.papers.vpd import RECIPES
from tessera.train.dense import dense_loader, dense_stage
from tessera.train.select import set_trainable
from tests.formula import fill
from tests.models import vpd_layout as layout
from tests.models.diffusion_tiny import mini_painter

GOLDEN = json.loads((Path(__file__).parent / "vpd_golden.json").read_text(encoding="utf-8"))
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT = {
    "vocab_size": 40, "hidden_size": layout.WIDTH, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 8, "eos_token_id": 39,
}  # fmt: skip


def model(task: str = "segmentation", **fields: Any) -> PerceptionModel:
    """A tiny model: tiles of 64 pixels, latents of an eighth."""
    torch.manual_seed(0)
    names = {"segmentation": ("sky", "sea", "land"), "depth": ("kitchen", "cellar"), "referring": ()}[task]
    config = PerceptionConfig(
        task=task, unet_config=layout.CONFIG, autoencoder_config=VAE,  # type: ignore[arg-type]
        tower_config=TEXT if task == "referring" else None, id2label=dict(enumerate(names)),
        **{"width": 16, "image_size": 128, "words": 6, **fields},
    )  # fmt: skip
    made = PerceptionModel(config).eval()
    if names:
        made.class_vectors.normal_()
    return made


def _agrees(found: Tensor, place: int) -> None:
    assert list(found.shape) == GOLDEN["shapes"][place]
    wanted = torch.tensor(GOLDEN["values"][place])
    torch.testing.assert_close(found.flatten()[:: layout.STEP], wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.light("vpd", "exact")
def test_the_pyramid_is_that_of_the_official_wrapper_on_the_same_weights() -> None:
    with torch.no_grad():
        found = UNetPyramid(layout.unet())(*layout.inputs())
    assert len(found) == 4
    for place, one in enumerate(found):
        _agrees(one, place)


@pytest.mark.light("vpd", "exact")
def test_phrases_are_decoded_as_by_the_official_decoder_on_the_same_weights() -> None:
    decoder = fill(ReferringDecoder(layout.DIMS))
    with torch.no_grad():
        _agrees(decoder(layout.pyramid()), 4)


def _maps_by_hand(unet: UNet2DConditionModel, largest: int) -> dict[int, Tensor]:
    """Mean maps by number of places, from what enters each cross-attention of encoder and decoder: the formula."""
    found: dict[int, list[Tensor]] = {}

    def look(attention: Any, inputs: Any, named: Any) -> None:
        states, words = inputs[0], named["encoder_hidden_states"]
        query, key = attention.to_q(states), attention.to_k(words)
        query, key = (one.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for one in (query, key))
        shares = torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1).mean(1)
        if shares.shape[1] <= largest:
            found.setdefault(shares.shape[1], []).append(shares)

    hooks = [
        module.register_forward_pre_hook(look, with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith("attn2") and not name.startswith("mid_block")
    ]
    unet(*layout.inputs())
    for hook in hooks:
        hook.remove()
    assert all(len(maps) == 5 for maps in found.values())  # 2 layers of the encoder and 3 of the decoder
    return {places: torch.stack(maps).mean(0) for places, maps in found.items()}


@pytest.mark.light("vpd", "exact")
@torch.no_grad()
def test_maps_are_the_mean_over_heads_and_layers_of_one_resolution_and_never_of_the_finest_or_the_middle() -> None:
    unet = layout.unet()
    by_hand = _maps_by_hand(unet, 64)
    found = UNetPyramid(unet)(*layout.inputs())
    assert sorted(by_hand) == [16, 64]
    for feature in found[1:3]:
        maps = feature[:, -layout.WORDS :].flatten(2).mT
        torch.testing.assert_close(maps, by_hand[maps.shape[1]], atol=1e-6, rtol=1e-5)
    assert [one.shape[1] for one in found] == UNetPyramid(unet).channels(layout.WORDS) == [32, 69, 69, 64]
    assert UNetPyramid(unet, 1.0).channels(5) == [37, 69, 69, 64]
    assert UNetPyramid(unet, 0.0).channels(5) == [32, 64, 64, 64]


@pytest.mark.light("vpd", "exact")
@torch.no_grad()
def test_a_read_unet_predicts_the_noise_that_the_stock_one_predicts() -> None:
    latents, steps, words = layout.inputs()
    stock = layout.unet()(latents, steps, words).sample
    pyramid = UNetPyramid(layout.unet())
    pyramid(latents, steps, words)
    assert not any(module._forward_hooks for module in pyramid.unet.modules())
    torch.testing.assert_close(pyramid.unet(latents, steps, words).sample, stock, atol=1e-6, rtol=1e-5)
    assert not pyramid.maps.found  # outside of a reading nothing is kept


@pytest.mark.light("vpd", "exact")
@torch.no_grad()
def test_maps_are_shares_of_the_words_and_one_word_has_all_of_them() -> None:
    pyramid = UNetPyramid(layout.unet(), 1.0)
    latents, steps, words = layout.inputs()
    for feature in pyramid(latents, steps, words)[:3]:
        maps = feature[:, -layout.WORDS :]
        assert maps.min() >= 0
        torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]))
    for feature in pyramid(latents, steps, words[:, :1])[:3]:
        assert torch.equal(feature[:, -1], torch.ones_like(feature[:, -1]))
    one = pyramid.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    states = torch.randn(2, 9, 32)
    told = one(states, encoder_hidden_states=words[:, :1])  # whatever the place asks, it hears the one word
    torch.testing.assert_close(told, told[:, :1].expand_as(told))


@pytest.mark.light("vpd", "exact")
@torch.no_grad()
def test_words_in_another_order_give_the_same_features_and_maps_in_that_order() -> None:
    pyramid = UNetPyramid(layout.unet())
    latents, steps, words = layout.inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    for plain, moved in zip(pyramid(latents, steps, words), pyramid(latents, steps, words[:, order]), strict=True):
        width = plain.shape[1] - (layout.WORDS if plain.shape[-1] in (8, 4) else 0)
        torch.testing.assert_close(moved[:, :width], plain[:, :width], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(moved[:, width:], plain[:, width:][:, order] if width < plain.shape[1] else
                                   plain[:, width:], atol=1e-6, rtol=1e-4)  # fmt: skip


@pytest.mark.light("vpd", "exact")
def test_without_gamma_words_enter_as_they_are() -> None:
    torch.manual_seed(0)
    words = torch.randn(2, 5, 24)
    assert torch.equal(TextAdapter(24, 0.0)(words), words)
    adapter = TextAdapter(24, 1e-4)
    torch.testing.assert_close(adapter(words) - words, 1e-4 * adapter.mlp(words), atol=1e-6, rtol=1e-2)
    assert sum(one.numel() for one in TextAdapter(768, 1e-4).parameters()) == 1_181_952


@pytest.mark.light("vpd", "exact")
@pytest.mark.parametrize("task", ["segmentation", "referring", "depth"])
def test_gradients_reach_unet_gamma_adapter_and_head_and_neither_autoencoder_nor_text_tower(task: str) -> None:
    made = model(task).train()
    if task == "referring":
        given = {"input_ids": torch.randint(0, 40, (2, 6)), "labels": torch.randint(0, 2, (2, 128, 128))}
    else:
        given = {"labels": torch.rand(2, 128, 128) + 0.1 if task == "depth" else torch.randint(0, 3, (2, 128, 128))}
    made(torch.rand(2, 3, 128, 128) * 2 - 1, **given).loss.backward()
    for part in (made.autoencoder, made.text):
        assert part is None or all(one.grad is None and not one.requires_grad for one in part.parameters())
        assert part is None or not part.training
    for name in ("adapter.gamma", "adapter.mlp.0.weight", "pyramid.unet.conv_in.weight", "head.classify.weight"):
        if name != "head.classify.weight" or task != "depth":
            assert made.get_parameter(name).grad.abs().max() > 0, name
    assert made.pyramid.unet.up_blocks[-1].resnets[-1].conv2.weight.grad.abs().max() > 0
    if task == "depth":
        assert made.pyramid.unet.conv_norm_out is None
        assert not [name for name, _ in made.named_parameters() if name.startswith("pyramid.unet.conv_out")]


@pytest.mark.light("vpd", "exact")
@pytest.mark.parametrize(("task", "share"), [("segmentation", 0.1), ("referring", 1.0), ("depth", 0.01)])
def test_the_published_unet_learns_at_its_share_of_the_rate_and_nothing_frozen_learns(task: str, share: float) -> None:
    made = model(task)
    recipe = RECIPES["published"][task]
    source = DenseScenes(task).source(task)  # type: ignore[arg-type]
    stage = dense_stage(made, dense_loader(source, lambda *_: {}, 1), 1, optimiser=recipe.optimiser)
    set_trainable(made, stage.trainable)
    rates = {id(one): group["lr"] for group in recipe.optimiser.build(made)[0].param_groups for one in group["params"]}
    for name, parameter in made.named_parameters():
        part = name.partition(".")[0]
        wanted = {"pyramid": share * recipe.optimiser.lr, "autoencoder": None, "text": None}
        assert rates.get(id(parameter)) == pytest.approx(wanted.get(part, recipe.optimiser.lr)), name


def test_latents_are_the_mean_of_the_posterior_and_scaled_only_where_asked() -> None:
    torch.manual_seed(0)
    encoder = LatentEncoder(VAE, scaled=False)
    pictures = torch.rand(1, 3, 64, 64)
    plain = encoder(pictures)
    assert plain.shape == (1, 4, 8, 8) and not plain.requires_grad and torch.equal(plain, encoder(pictures))
    scaled = LatentEncoder(VAE, scaled=True)
    scaled.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(scaled(pictures), 0.18215 * plain)
    scaled.mean.fill_(1.0)
    scaled.spread.fill_(2.0)
    torch.testing.assert_close(scaled(pictures), (0.18215 * plain - 1) / 2)
    with pytest.raises(UserError, match="the autoencoder is a 'VQModel'; known are"):
        LatentEncoder({"_class_name": "VQModel"}, scaled=False)


def test_a_painter_s_unet_is_given_what_its_painter_gives_it() -> None:
    painter = mini_painter()
    latents, given = torch.randn(2, 4, 8, 8), []
    hook = painter.unet.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    painter.predict(latents, torch.ones(2).long(), *painter.null_conditions(2))
    hook.remove()
    torch.testing.assert_close(unet_input(painter.unet, latents), given[0])
    encoder = LatentEncoder({**painter.vae.config, "_class_name": "AutoencoderTiny"}, True, painter.vae)
    encoder.mean.copy_(painter.latent_mean)
    encoder.spread.copy_(painter.latent_spread)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(encoder(pictures), painter.encode(pictures).detach())
    with pytest.raises(UserError, match="takes 12 channels and gives 4; it is not one of the autoencoder's 3 latents"):
        unet_input(painter.unet, latents[:, :3])


def test_the_unet_is_told_the_timestep_of_the_configuration_as_whole_numbers() -> None:
    told = []
    made = model(timestep=7)
    made.pyramid.unet.register_forward_pre_hook(lambda module, inputs: told.append(inputs[1]))
    with torch.no_grad():
        made(latents=torch.randn(3, 4, 16, 16))
    assert told[0].tolist() == [7, 7, 7] and told[0].dtype == torch.long


def test_pictures_that_the_unet_cannot_tile_are_refused_and_other_proportions_are_not() -> None:
    made = model()
    with torch.no_grad():
        assert made(torch.zeros(1, 3, 64, 128)).logits.shape == (1, 3, 64, 128)
    with pytest.raises(UserError, match=r"the picture of 100 x 128 pixels does not divide into the 64 x 64 tiles"):
        made(torch.zeros(1, 3, 128, 100))
    deep = model("depth", width=16)
    with torch.no_grad():
        assert deep(torch.zeros(1, 3, 96, 128), class_ids=torch.tensor([1])).depth.shape == (1, 96, 128)
    with pytest.raises(UserError, match="does not divide into the 32 x 32 tiles"):
        deep(torch.zeros(1, 3, 80, 64))
    with pytest.raises(UserError, match="a picture of 100 x 100 pixels does not divide into the 64 x 64 tiles"):
        model(image_size=100)
    with pytest.raises(UserError, match="phrases of 9 words do not fit the 8 places"):
        model("referring", words=9)


def test_depth_lies_below_its_largest_and_hears_the_kind_of_scene() -> None:
    made = model("depth", max_depth=3.0, largest_map=0.0)
    fill(made.head)
    with torch.no_grad():
        first, other = (made(latents=torch.ones(1, 4, 16, 16), class_ids=torch.tensor([place])) for place in (0, 1))
        features = [made.features(torch.ones(1, 4, 16, 16), made.words(1, None, torch.tensor([at]))) for at in (0, 1)]
    assert first.depth.shape == other.depth.shape == (1, 128, 128) and 0 < first.depth.min() < first.depth.max() < 3
    assert not torch.equal(features[0][0], features[1][0])
    assert [one.shape[1] for one in features[0]] == [32, 64, 64, 64]


@pytest.mark.parametrize("finer", [0, 2])
def test_heads_take_pyramids_of_any_depth(finer: int) -> None:
    torch.manual_seed(0)
    maps = layout.pyramid()
    for some in (maps, maps[:1], maps[:2]):
        channels = [one.shape[1] for one in some]
        head = SemanticFPN(channels, 7, 8, 0.0, finer).eval()
        assert head(some).shape == (2, 7, 16 << finer, 16 << finer)
        if len(some) + finer > 1:
            assert ReferringDecoder(channels, finer).eval()(some).shape == (2, 2, 16 << finer, 16 << finer)
    wide = [torch.randn(1, 16, 16 >> stage, 16 >> stage) for stage in range(4)]
    for some, stride in ((wide, 32), (wide[:1], 8), (wide[:2], 8)):
        decoder = DepthDecoder([16] * len(some), stride, 8).eval()
        side = 128
        assert decoder(some, (side, side)).shape == (1, 1, side, side)
        assert decoder(some, (side - stride, side)).shape == (1, 1, side - stride, side)


def test_more_than_words_is_refused() -> None:
    small = {**layout.CONFIG, "norm_num_groups": 8}
    with pytest.raises(UserError, match="class_embed_type='timestep' and needs more than words"):
        UNetPyramid(UNet2DConditionModel(**small, class_embed_type="timestep"))
    plain = {"down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4, "mid_block_type": None}
    with pytest.raises(UserError, match="has no cross-attention to words"):
        UNetPyramid(UNet2DConditionModel(**small, **plain))
    with pytest.raises(UserError, match="needs a text tower"):
        PerceptionConfig(task="referring")
    with pytest.raises(UserError, match=r"largest_map 2.0 is in \[0, 1\]"):
        PerceptionConfig(largest_map=2.0)


@pytest.mark.light("vpd", "exact")
def test_losses_are_their_formulas() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([[[0, 1], [255, 1]]])
    logits = torch.randn(1, 2, 2, 2)
    chance = logits.log_softmax(1)
    told = -torch.stack([chance[0, 0, 0, 0], chance[0, 1, 0, 1], chance[0, 1, 1, 1]])

    class Found:
        depth: Tensor

    found = Found()
    found.logits = logits  # type: ignore[attr-defined]
    plain, weighed = (dense_loss(task, found, labels) for task in ("segmentation", "referring"))
    torch.testing.assert_close(plain.mean(), told.mean())
    torch.testing.assert_close(weighed.total, (told * torch.tensor([0.9, 1.1, 1.1])).sum())
    assert weighed.number == 3
    depth, there = torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[2.0, 2.0, 0.0]]])
    found.depth = depth
    apart = math.log(2)
    wanted = math.sqrt(apart**2 / 2 - 0.5 * (apart / 2) ** 2)
    assert dense_loss("depth", found, there).mean().item() == pytest.approx(wanted, rel=1e-6)
    found.depth = depth.requires_grad_()
    assert dense_loss("depth", found, torch.zeros(1, 1, 3)).mean() == 0
