"""T2T-ViT: published counts, what the official code answers, its layout of weights, other sizes, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel

from tessera.errors import CheckpointError, UserError
from tessera.study.counting import count
from tessera.train.select import set_trainable
from tessera.vision import registry
from tessera.vision.t2t_published import from_official, load_published
from tessera.vision.t2t_vit import ABLATIONS, PUBLISHED, T2TViT, T2TViTConfig
from tests.vision.t2t_layout import FLAVOURS, layout, pictures, weights

GOLDEN = json.loads((Path(__file__).parent / "t2t_golden.json").read_text(encoding="utf-8"))
COUNTS = {  # trainable, all, GMACs; of the classifier with 1000 classes
    "t2t-vit-7": (4_255_694, 4_310_222, 1.147),
    "t2t-vit-10": (5_834_702, 5_889_230, 1.516),
    "t2t-vit-12": (6_887_374, 6_941_902, 1.763),
    "t2t-vit-14": (21_465_806, 21_545_550, 4.783),
    "t2t-vit-19": (39_085_070, 39_177_422, 8.480),
    "t2t-vit-24": (64_000_974, 64_105_934, 13.662),
    "t2t-vit-t-14": (21_465_422, 21_541_070, 6.089),
    "t2t-vit-t-19": (39_084_686, 39_172_942, 9.785),
    "t2t-vit-t-24": (64_000_590, 64_101_454, 14.967),
    "t2t-vit-14-resnext": (21_465_806, 21_545_550, 4.783),
    "t2t-vit-14-wide": (25_000_910, 25_156_302, 5.229),
    "t2t-vit-dense": (23_617_750, 23_647_062, 5.276),
    "t2t-vit-14-se": (21_723_854, 21_803_598, 4.784),
    "t2t-vit-16-ghost": (16_173_518, 16_253_262, 3.802),
}


def on_meta(name, **changes):
    with torch.device("meta"):
        return registry.create(name, **changes)


@pytest.mark.light("t2t-vit", "size")
@pytest.mark.parametrize("name", COUNTS)
def test_every_published_shape_counts_exactly(name):
    model = on_meta(name)
    with torch.device("meta"):
        head = nn.Linear(model.width, 1000)
        counted = count(model, {"pixel_values": torch.empty(1, 3, 224, 224)})
    heads = count(head)["parameters"]
    trainable, everything, gmacs = COUNTS[name]
    assert counted["trainable"] + heads == trainable
    assert sum(value.numel() for value in model.state_dict().values()) + heads == everything
    assert counted["gmacs"] == pytest.approx(gmacs, rel=0.005)


@pytest.mark.light("t2t-vit", "size")
@pytest.mark.parametrize(("name", "everything", "gmacs"), [("14", 391_526, 0.299), ("t-14", 387_046, 1.604)])
def test_the_t2t_module_alone_counts_exactly(name, everything, gmacs):
    module = on_meta(f"t2t-vit-{name}").tokens
    assert sum(value.numel() for value in module.state_dict().values()) == everything
    counted = count(module, {"picture": torch.empty(1, 3, 224, 224, device="meta")})
    assert counted["gmacs"] == pytest.approx(gmacs, rel=0.005)


@pytest.mark.light("t2t-vit", "size")
def test_at_384_pixels_the_table_of_positions_alone_grows():
    model = on_meta("t2t-vit-14-384")
    assert model.grid_of(384, 384) == (24, 24)
    assert sum(value.numel() for value in model.state_dict().values()) + 385_000 == 21_545_550 + (577 - 197) * 384


def test_every_named_shape_is_counted():
    assert {*COUNTS, "t2t-vit-14-384"} == {*PUBLISHED, *ABLATIONS}
    assert set(COUNTS) < set(registry.names())


def small(flavour):
    model = T2TViT(T2TViTConfig(**FLAVOURS[flavour])).eval()
    state, head = from_official(weights(layout(model.config)))
    model.load_state_dict(state)
    return model, head


@pytest.mark.light("t2t-vit", "exact", "weights")
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_logits_equal_those_of_the_official_code_with_the_same_weights(flavour):
    model, head = small(flavour)
    with torch.no_grad():
        logits = nn.functional.linear(model(pictures()).pooled, **head)
    torch.testing.assert_close(logits, torch.tensor(GOLDEN[flavour]), atol=1e-5, rtol=0)


@pytest.mark.light("t2t-vit", "weights")
@pytest.mark.parametrize("name", COUNTS)
def test_the_official_layout_of_every_shape_fits(name):
    model = on_meta(name)
    theirs = {key: torch.empty(shape, device="meta") for key, shape in layout(model.config, classes=1000).items()}
    state, head = from_official(theirs)
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert {key: tuple(value.shape) for key, value in head.items()} == {
        "weight": (1000, model.width), "bias": (1000,),
    }  # fmt: skip


@pytest.mark.light("t2t-vit", "weights")
@pytest.mark.parametrize("side", [224, 384])
def test_a_file_in_the_official_layout_loads_with_its_own_picture_size_and_tells_its_variant(tmp_path, side):
    shapes = layout(registry.config("t2t-vit-7", image_size=side), classes=1000)
    state = weights(shapes)
    file = tmp_path / "model.safetensors"
    save_file({f"module.{name}": value for name, value in state.items()}, file)
    for path in (file, tmp_path):
        model, head = load_published(path)
        assert model.config.image_size == side
        assert not model.training
        assert torch.equal(head["weight"], state["head.weight"])
        assert torch.equal(model.positions.table, state["pos_embed"][0])
        assert torch.equal(model.tokens.layers[1].features, state["tokens_to_token.attention2.w"])
        assert torch.equal(model.blocks[6].attn.out.weight, state["blocks.6.attn.proj.weight"])


def test_a_checkpoint_of_another_architecture_names_five_tensors_that_differ(tmp_path):
    file = tmp_path / "vit.safetensors"
    save_file({f"encoder.layer.{number}.weight": torch.zeros(2) for number in range(30)}, file)
    with pytest.raises(CheckpointError) as caught:
        load_published(file)
    said = str(caught.value)
    assert str(file) in said
    assert "30 unexpected (encoder.layer.0.weight" in said
    assert sum(said.count(start) for start in ("blocks.", "encoder.layer.")) == 5


def test_weights_of_another_variant_name_what_differs(tmp_path):
    file = tmp_path / "seven.safetensors"
    save_file(weights(layout(registry.config("t2t-vit-7"))), file)
    with pytest.raises(CheckpointError, match=r"33 missing \(blocks\.7\."):
        load_published(file, "t2t-vit-10")
    with pytest.raises(UserError, match="vit-s16 is no T2T-ViT"):
        load_published(file, "vit-s16")


def test_a_pickle_is_refused(tmp_path):
    file = tmp_path / "81.5_T2T_ViT_14.pth.tar"
    torch.save({"state_dict_ema": {}}, file)
    with pytest.raises(CheckpointError, match="pickle"):
        load_published(file)


def mini(**changes):
    torch.manual_seed(0)
    return registry.create("t2t-vit-mini", **changes).eval()


@pytest.mark.parametrize("side", [(64, 64), (32, 64), (96, 64)])
def test_pictures_need_be_neither_square_nor_of_the_configured_size(side):
    model = mini()
    out = model(torch.randn(2, 3, *side), output_hidden_states=True)
    h, w = out.grid
    assert (h, w) == model.grid_of(*side) == (side[0] // 8, side[1] // 8)
    assert out.tokens.shape == (2, h * w, model.width)
    assert out.pooled.shape == (2, model.width)
    assert [state.shape for state in out.hidden_states] == [(2, 1 + h * w, model.width)] * 6
    torch.testing.assert_close(model.norm(out.hidden_states[-1])[:, 1:], out.tokens)


def test_tokens_of_a_wide_picture_stand_row_by_row():
    model = mini(num_hidden_layers=1)
    picture = torch.zeros(1, 3, 32, 64)
    changed = picture.clone()
    changed[..., 28:, 60:] = 5  # the lower right corner
    with torch.no_grad():
        tokens, other = (model.tokens(one)[0] for one in (picture, changed))
    assert (tokens - other).norm(dim=-1).argmax() == 4 * 8 - 1


@pytest.mark.parametrize("block", ["se", "ghost"])
def test_blocks_of_the_study_train(block):
    model = mini(block=block, num_hidden_layers=1, mlp_ratio=3.0).train()
    model(torch.randn(2, 3, 64, 64)).tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_dense_stack_grows_within_a_stage_and_halves_between_stages():
    model = mini(block="dense", dense_stages=(2, 1), num_hidden_layers=3, dense_growth=64)
    out = model(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    assert [state.shape[-1] for state in out.hidden_states] == [192, 256, 192]
    assert model.width == out.tokens.shape[-1] == 192


def test_a_stage_that_trains_everything_leaves_positions_and_random_features_alone():
    model = mini()
    trained, frozen = set_trainable(model, ["*"])
    fixed = sum(value.numel() for value in model.state_dict().values()) - trained
    assert frozen == 0
    assert fixed == 65 * 128 + 2 * 16 * 32


@pytest.mark.parametrize("layer", ["performer", "transformer", "convolution"])
def test_saved_and_loaded_it_answers_the_same(tmp_path, layer):
    model = mini(token_layer=layer)
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = AutoModel.from_pretrained(tmp_path)
    picture = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(picture).tokens, again(picture).tokens)
    assert again.config.splits == [[3, 2, 1]] * 3


def test_new_weights_follow_the_published_start():
    model = mini(initializer_range=0.02)
    assert model.class_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert mini().blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert registry.config("t2t-vit-14").initializer_range == 0.02
    assert model.blocks[0].mlp.fc1.bias.abs().max() == 0
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])


def test_a_size_that_cannot_be_tiled_says_which_can():
    model = on_meta("t2t-vit-14")
    with pytest.raises(UserError, match="225 x 224.*multiples of 16.*224 x 224"):
        model(torch.empty(1, 3, 225, 224, device="meta"))
    with pytest.raises(UserError, match="multiples of 16"):
        registry.config("t2t-vit-14", image_size=100)


def test_an_unknown_variant_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'t2tvit-14'; did you mean 't2t-vit-14'"):
        registry.create("t2tvit-14")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"splits": ((7, 4, 1),)}, "windows of 7 with stride 4 and padding 1.*at least 2"),
        ({"splits": ()}, "splits is empty"),
        ({"num_attention_heads": 5}, "384 does not divide into 5 heads"),
        ({"block": "dense", "dense_stages": (1, 2)}, r"\[1, 2\] are 3 blocks and num_hidden_layers is 14"),
        (
            {"block": "dense", "dense_stages": (3, -2), "num_hidden_layers": 1},
            r"\[3, -2\]; each has at least one block",
        ),
        ({"token_layer": "performa"}, "cannot be built so"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        registry.config("t2t-vit-14", **changes)


def test_a_ghost_block_needs_an_mlp_of_three_widths():
    with pytest.raises(UserError, match="set mlp_ratio to 3"):
        mini(block="ghost")
