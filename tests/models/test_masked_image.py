"""Any backbone that restores pictures: parity, limits, weights of the release, what cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from tessera.errors import CheckpointError, UserError
from tessera.layers.pixels import PixelHead
from tessera.models.masked_image import MaskedImageConfig, MaskedImageModel, restore
from tessera.models.masked_image_published import load_published
from tessera.objectives.group_masking import GroupMasking, corrupted_batch
from tessera.vision.registry import create
from tessera.vision.vit_published import load_published as load_vit

BLOCKS = (-7, -5, -3, -1)
OFFICIAL = (  # names of transformers' ViT to those of the release
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)


def pictures(side: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def theirs(depth: int = 12, width: int = 64, heads: int = 1) -> ViTModel:
    torch.manual_seed(0)
    model = ViTModel(
        ViTConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
            image_size=32, patch_size=8, layer_norm_eps=1e-6,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def averaged(model: ViTModel) -> torch.Tensor:
    """Blocks 6, 8, 10 and 12 of transformers' ViT: averaged, normed, without the class token."""
    states = model(pictures(), output_hidden_states=True).hidden_states
    return model.layernorm(torch.stack([states[block] for block in (6, 8, 10, 12)]).mean(0))[:, 1:]


def released(model: ViTModel) -> dict[str, torch.Tensor]:
    """The weights under the names of the release, and a head's."""
    state, width = model.state_dict(), model.config.hidden_size
    found = {}
    for name, value in state.items():
        for theirs, official in OFFICIAL:
            name = re.sub(theirs, official, name)
        found[f"backbone.{name}"] = value
    for place in range(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            block = f"backbone.blocks.{place}.attn."
            three = [found.pop(f"{block}{letter}.{kind}") for letter in "qkv"]
            found[f"{block}qkv.{kind}"] = torch.cat(three)
    for place in (0, 2, 4):
        found[f"head_recons.mlp.{place}.weight"] = torch.randn(width, width) * 0.1
        found[f"head_recons.mlp.{place}.bias"] = torch.randn(width) * 0.1
    found["head_recons.convTrans.weight"] = torch.randn(width, 3, 8, 8) * 0.1
    found["head_recons.convTrans.bias"] = torch.randn(3)
    return {f"module.{name}": value.contiguous().clone() for name, value in found.items()}


@pytest.mark.light("gmml", "exact")
def test_features_are_the_mean_of_four_blocks_after_the_last_norm_as_from_transformers(tmp_path: Path) -> None:
    vit = theirs()
    vit.save_pretrained(tmp_path)
    ours, _ = load_vit(tmp_path)
    features, grid = MaskedImageModel.over(ours, blocks=BLOCKS).eval().features(pictures())
    assert grid == (4, 4)
    torch.testing.assert_close(features, averaged(vit), atol=2e-5, rtol=2e-5)


@pytest.mark.light("gmml", "weights")
def test_the_release_s_layout_loads_and_restores_what_its_parts_do(tmp_path: Path) -> None:
    vit = theirs()
    state = released(vit)
    save_file(state, tmp_path / "gmml.safetensors")
    head = {name.removeprefix("module.head_recons."): value for name, value in state.items() if "head_recons" in name}
    model = load_published(tmp_path / "gmml.safetensors")
    x = averaged(vit)
    for place in (0, 2, 4):
        x = F.gelu(F.linear(x, head[f"mlp.{place}.weight"], head[f"mlp.{place}.bias"]))
    maps = x.transpose(1, 2).unflatten(2, (4, 4))
    wanted = F.conv_transpose2d(maps, head["convTrans.weight"], head["convTrans.bias"], stride=8)
    torch.testing.assert_close(model(pictures()).reconstruction, wanted, atol=1e-4, rtol=1e-4)
    save_file({"head_recons.mlp.0.bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no backbone.... of GMML; its first names are head_recons.mlp.0"):
        load_published(tmp_path / "other.safetensors")
    del state["module.head_recons.convTrans.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match="tiles.bias"):
        load_published(tmp_path / "cut.safetensors")


@pytest.mark.light("gmml", "exact")
def test_nothing_hidden_and_the_last_block_alone_make_a_plain_autoencoder() -> None:
    model = MaskedImageModel.over(create("vit-mini", num_hidden_layers=2), blocks=(-1,), everywhere=True).eval()
    clean, nothing = pictures().numpy(), GroupMasking(least=0, most=0, replace=0)
    batch = corrupted_batch(clean, [nothing(one, np.random.default_rng(0)) for one in clean])
    wanted = model.head(*[getattr(model.backbone(pictures()), name) for name in ("tokens", "grid")])
    out = model(batch["pixel_values"], batch["targets"], batch["mask"])
    torch.testing.assert_close(out.reconstruction, wanted)
    torch.testing.assert_close(out.loss, (wanted - pictures()).abs().mean())
    model.config.blocks = ()
    torch.testing.assert_close(model(pictures()).reconstruction, wanted)


@pytest.mark.light("gmml", "exact")
@pytest.mark.parametrize(("name", "side"), [("vit-mini", 32), ("t2t-vit-mini", 64), ("cvt-mini", 32)])
def test_every_backbone_with_a_grid_of_tokens_restores_pictures_and_learns_from_it(name: str, side: int) -> None:
    model, masking = MaskedImageModel.over(name, blocks=(-4, -2, -1)), GroupMasking(align=4)
    clean = pictures(side).numpy()
    batch = corrupted_batch(clean, [masking(one, np.random.default_rng(place)) for place, one in enumerate(clean)])
    assert model(batch["pixel_values"]).reconstruction.shape == clean.shape
    total, number = restore(model, batch)["pixels"]
    torch.testing.assert_close(total / number, model(batch["pixel_values"], batch["targets"], batch["mask"]).loss)
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("kind", ["clip", "vit", "dinov2"])
def test_published_encoders_restore_pictures_too(tmp_path: Path, kind: str) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
    sizes |= {"patch_size": 8, **({} if kind == "dinov2" else {"intermediate_size": 16})}
    made: Any = {
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**sizes)),
        "vit": lambda: ViTModel(ViTConfig(**sizes)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**sizes)),
    }[kind]()
    made.save_pretrained(tmp_path)
    model = MaskedImageModel.over(str(tmp_path), blocks=(-1,)).eval()
    torch.testing.assert_close(model.features(pictures(16))[0], model.backbone(pictures(16)).tokens)
    assert model(pictures(16)).reconstruction.shape == (2, 3, 16, 16)


def test_it_saves_and_loads_to_the_same_pictures(tmp_path: Path) -> None:
    model = MaskedImageModel.over(create("vit-mini", num_hidden_layers=2), blocks=(-2, -1), everywhere=True).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert (tuple(again.config.blocks), again.config.everywhere) == ((-2, -1), True)
    assert torch.equal(again(pictures()).reconstruction, model(pictures()).reconstruction)


def test_blocks_that_are_not_there_or_not_alike_are_said() -> None:
    small = create("vit-mini", num_hidden_layers=2)
    with pytest.raises(UserError, match="the backbone has 2; -1 is the last"):
        MaskedImageModel.over(small, blocks=(-3,))(pictures())
    with pytest.raises(UserError, match="take blocks of one stage"):
        MaskedImageModel.over("cvt-mini", blocks=(-5, -1))(pictures())
    with pytest.raises(UserError, match="they are counted from the last"):
        MaskedImageConfig(backbone_config=small.config, blocks=(6, 8, 10, 12))
    with pytest.raises(UserError, match="33 pixels do not divide"):
        MaskedImageModel.over(create("cvt-mini", image_size=33))


def test_the_head_reads_each_token_alone() -> None:
    torch.manual_seed(0)
    head, tokens = PixelHead(8, (4, 2)), torch.randn(1, 6, 8)
    whole = head(tokens, (2, 3))
    assert whole.shape == (1, 3, 8, 6)
    tokens[0, 4] += 1  # row 1, column 1
    changed = (head(tokens, (2, 3)) != whole).any(1)[0]
    assert changed[4:8, 2:4].all() and changed.sum() == 8
