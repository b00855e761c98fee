"""Tokenizers with a codebook: the re-implementation's sums, limits, losses, saving, what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from tessera.errors import CheckpointError, UserError
from tessera.layers.stylegan import Discriminator
from tessera.models.folder import read_folder
from tessera.models.vq import VQConfig, VQTokenizer
from tessera.models.vq.published import load_published
from tessera.models.vq.training import Losses, TokenizerInTraining, counts, restore
from tests.models.vq_tiny import CONV, TINY, pictures, tokenizer

WIDTH, HEAD, MLP, DEPTH, CODES, LOOK, PATCH, GRID = 128, 64, 96, 2, 20, 6, 4, 3


def published() -> dict[str, Tensor]:
    """Random weights in the re-implementation's layout, with its table of positions."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * 0.2

    state: dict[str, Tensor] = {
        "encoder.to_patch_embedding.0.weight": random(WIDTH, 3, PATCH, PATCH),
        "encoder.to_patch_embedding.0.bias": random(WIDTH),
        "decoder.to_pixel.conv_out.weight": random(WIDTH, 3, PATCH, PATCH),
        "decoder.to_pixel.conv_out.bias": random(3),
        "quantizer.embedding.weight": random(CODES, LOOK),
        "pre_quant.weight": random(LOOK, WIDTH), "pre_quant.bias": random(LOOK),
        "post_quant.weight": random(WIDTH, LOOK), "post_quant.bias": random(WIDTH),
        "loss.discriminator.final_conv.weight": random(1),
    }  # fmt: skip
    for side, short in (("encoder", "en"), ("decoder", "de")):
        state[f"{side}.{short}_pos_embedding"] = torch.from_numpy(positions()).float()[None]
        state |= {f"{side}.norm.weight": random(WIDTH), f"{side}.norm.bias": random(WIDTH)}
        for layer in range(DEPTH):
            at = f"{side}.transformer.layers.{layer}"
            state |= {
                f"{at}.0.norm.weight": random(WIDTH), f"{at}.0.norm.bias": random(WIDTH),
                f"{at}.0.fn.to_qkv.weight": random(3 * 2 * HEAD, WIDTH),
                f"{at}.0.fn.to_out.weight": random(WIDTH, 2 * HEAD), f"{at}.0.fn.to_out.bias": random(WIDTH),
                f"{at}.1.norm.weight": random(WIDTH), f"{at}.1.norm.bias": random(WIDTH),
                f"{at}.1.fn.net.0.weight": random(MLP, WIDTH), f"{at}.1.fn.net.0.bias": random(MLP),
                f"{at}.1.fn.net.2.weight": random(WIDTH, MLP), f"{at}.1.fn.net.2.bias": random(WIDTH),
            }  # fmt: skip
    return state


def positions() -> np.ndarray:
    """Sines and cosines of the column, then of the row, [GRID * GRID, WIDTH], place by place."""
    quarter = WIDTH // 4
    rates = [10000 ** (-place / quarter) for place in range(quarter)]
    return np.array([
        [wave(place * rate) for place in (column, row) for wave in (np.sin, np.cos) for rate in rates]
        for row in range(GRID) for column in range(GRID)
    ])  # fmt: skip


def theirs(state: dict[str, Tensor], x: Tensor, side: str) -> Tensor:
    """The transformer of that layout, written out: positions, blocks with tanh and queries without bias, the norm."""

    def norm(x: Tensor, at: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{at}.weight"], state[f"{at}.bias"])

    def linear(x: Tensor, at: str) -> Tensor:
        return F.linear(x, state[f"{at}.weight"], state.get(f"{at}.bias"))

    x = x + state[f"{side}.{side[:2]}_pos_embedding"]
    for layer in range(DEPTH):
        at = f"{side}.transformer.layers.{layer}"
        parts = linear(norm(x, f"{at}.0.norm"), f"{at}.0.fn.to_qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (2, HEAD)).transpose(1, 2) for part in parts)
        read = (q @ k.transpose(2, 3) / HEAD**0.5).softmax(-1) @ v
        x = x + linear(read.transpose(1, 2).flatten(2), f"{at}.0.fn.to_out")
        x = x + linear(linear(norm(x, f"{at}.1.norm"), f"{at}.1.fn.net.0").tanh(), f"{at}.1.fn.net.2")
    return norm(x, f"{side}.norm")


@pytest.mark.light("vit-vqgan", "exact", "weights")
def test_the_re_implementation_s_layout_loads_and_gives_its_features_ids_and_pictures(tmp_path: Path) -> None:
    state, seen = published(), pictures(2, GRID * PATCH)
    save_file(state, tmp_path / "vit.safetensors")
    model = load_published(tmp_path / "vit.safetensors")
    weight, bias = (state[f"encoder.to_patch_embedding.0.{name}"] for name in ("weight", "bias"))
    features = theirs(state, F.conv2d(seen, weight, bias, stride=PATCH).flatten(2).transpose(1, 2), "encoder")
    torch.testing.assert_close(model.states(seen)[0], features, atol=2e-5, rtol=2e-5)
    vectors = F.normalize(F.linear(features, state["pre_quant.weight"], state["pre_quant.bias"]), dim=-1)
    table = F.normalize(state["quantizer.embedding.weight"], dim=-1)
    ids = torch.cdist(vectors, table).argmin(-1)
    tokens = model.encode(seen)
    assert torch.equal(tokens.ids, ids) and tokens.grid == (GRID, GRID)
    back = theirs(state, F.linear(table[ids], state["post_quant.weight"], state["post_quant.bias"]), "decoder")
    weight, bias = (state[f"decoder.to_pixel.conv_out.{name}"] for name in ("weight", "bias"))
    maps = back.transpose(1, 2).unflatten(2, (GRID, GRID))
    wanted = F.conv_transpose2d(maps, weight, bias, stride=PATCH)
    torch.testing.assert_close(model(seen).reconstruction, wanted, atol=1e-4, rtol=1e-4)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"encoder.norm.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no ViT-VQGAN.*first names are encoder.transformer.norm.weight"):
        load_published(tmp_path / "other.safetensors")
    state = published()
    del state["decoder.to_pixel.conv_out.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.tiles\.bias"):
        load_published(tmp_path / "cut.safetensors")


def test_the_fixed_positions_are_the_published_table() -> None:
    model = tokenizer(positions="sine2d", image_size=GRID * PATCH, encoder_width=WIDTH)
    table: Any = model.encoder.transformer.positions.table
    torch.testing.assert_close(table, torch.from_numpy(positions()).float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("fields", [TINY, {**TINY, "codebook": "ema", "logit_laplace": False}, CONV])
def test_ids_and_codes_decode_to_the_same_picture_and_survive_saving(fields: dict[str, Any], tmp_path: Path) -> None:
    model, seen = tokenizer(**fields), pictures()
    tokens = model.encode(seen)
    assert tokens.ids.shape == (3, 16) and 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < 12
    again = model.decode(tokens.ids)
    torch.testing.assert_close(model.decode(tokens.embeds, tokens.grid), again)
    torch.testing.assert_close(model(seen).reconstruction.clamp(0, 1), again)
    assert torch.equal(model(seen).ids, tokens.ids)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(loaded.encode(seen).ids), again)


def test_a_tokenizer_whose_codes_restart_is_saved_with_their_idle_batches(tmp_path: Path) -> None:
    model = tokenizer(restart=5).train()
    model(pictures())
    assert int(model.quantiser.idle.max()) == 1
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.quantiser.idle, model.quantiser.idle)
    with pytest.raises(UserError, match="codes cannot move after -1 batches"):
        VQConfig(restart=-1)


def test_centred_pictures_enter_within_minus_one_and_one() -> None:
    model, seen = tokenizer(centred=True), pictures()
    plain = tokenizer()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.states(seen)[0], plain.states(2 * seen - 1)[0])


def test_pictures_of_another_shape_are_taken_where_tiles_fill_them() -> None:
    model = tokenizer()
    tokens = model.encode(torch.rand(1, 3, 8, 24))
    assert tokens.grid == (2, 6) and model.decode(tokens.ids, tokens.grid).shape == (1, 3, 8, 24)


@pytest.mark.parametrize("fields", [TINY, CONV])
def test_every_loss_is_there_and_each_parameter_learns(fields: dict[str, Any]) -> None:
    model = tokenizer(**fields).train()
    whole = TokenizerInTraining(model, Losses(perceptual=0.0), Discriminator(16, channels=4))
    batch = {"pixel_values": pictures(4)}
    terms = restore(whole, batch)
    weights = whole.losses.weights(0.25)
    assert set(terms) == set(weights) == set(counts(batch, whole))
    assert {name: term[1] for name, term in terms.items()} == counts(batch, whole)
    sum(weights[name] * total / number for name, (total, number) in terms.items()).backward()  # type: ignore[union-attr]
    assert [name for name, one in whole.named_parameters() if one.grad is None] == []
    assert weights["commitment"] == 0.25 and weights["adversary"] == 0.1
    assert whole.trainable == ["tokenizer.*", "critic.*"]


def test_the_slope_is_taken_every_so_many_batches_and_so_many_times_as_large() -> None:
    whole = TokenizerInTraining(tokenizer().train(), Losses(perceptual=0.0, slope_every=3), Discriminator(16, 4))
    batch = {"pixel_values": pictures(4)}
    found = [float(restore(whole, batch)["slope"][0].detach()) for _ in range(5)]
    assert [value > 0 for value in found] == [True, False, False, True, False]
    once = TokenizerInTraining(tokenizer().train(), Losses(perceptual=0.0, slope_every=1), whole.critic)
    assert found[0] == pytest.approx(3 * float(restore(once, batch)["slope"][0].detach()), rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image_size": 30}, "30 x 30 pixels cannot be cut into tiles of 4 x 4.*nearest size is 32 x 32"),
        ({"encoder_heads": 3}, "width of 16 does not divide into 3 heads"),
        ({"codes": 0}, "codes is 0"),
        ({"code_width": 0, "decoder_width": 32}, "set code_width, or one of the widths"),
    ],
)
def test_what_no_tokenizer_can_be_is_said(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        VQConfig(**{**TINY, **fields})


def test_a_picture_that_does_not_tile_and_a_code_that_is_not_there_are_said() -> None:
    model = tokenizer()
    with pytest.raises(UserError, match="18 x 16 pixels cannot be cut into tiles of 4 x 4"):
        model.encode(torch.rand(1, 3, 18, 16))
    with pytest.raises(UserError, match="there is no code 12; the codebook has 12"):
        model.decode(torch.full((1, 16), 12))
    with pytest.raises(UserError, match="15 tokens do not fill a grid of 3 x 3"):
        model.decode(torch.zeros(1, 15, dtype=torch.int64))


@pytest.mark.light("vit-vqgan", "use")
def test_a_codebook_of_another_size_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "codes": 20}))
    with pytest.raises(CheckpointError, match=r"quantiser.codes.weight \[12, 4\] for \[20, 4\]"):
        read_folder(tmp_path, VQTokenizer, torch.float32, "cpu")
