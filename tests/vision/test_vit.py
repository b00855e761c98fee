"""The plain ViT: published counts, parity with transformers, other sizes and grids."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, Dinov2Config, Dinov2Model, ViTForImageClassification, ViTMAEModel, ViTModel
from transformers import ViTConfig as PublishedConfig

from tessera.errors import CheckpointError, UserError
from tessera.study.counting import count
from tessera.vision import registry
from tessera.vision.hf import PublishedBackbone, PublishedVisionConfig
from tessera.vision.vit import PlainViT
from tessera.vision.vit_published import as_plain, load_published

TINY = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 32,
    "patch_size": 8, "layer_norm_eps": 1e-5,
}  # fmt: skip


def published(kind=ViTModel, **fields):
    torch.manual_seed(0)
    model = kind(PublishedConfig(**{**TINY, **fields})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [("vit-ti16", 5_524_416, 1.253), ("vit-s16", 21_665_664, 4.60), ("vit-b16", 85_798_656, 17.56)],
)
def test_published_sizes_count_exactly(name, parameters, gmacs):
    with torch.device("meta"):
        counted = count(registry.create(name), {"pixel_values": torch.empty(1, 3, 224, 224)})
    assert counted["parameters"] == counted["trainable"] == parameters
    assert counted["gmacs"] == pytest.approx(gmacs, rel=0.005)


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False}, {"hidden_act": "gelu_new"}])
def test_outputs_equal_those_of_transformers_with_the_same_weights(tmp_path, fields):
    theirs = published(**fields)
    theirs.save_pretrained(tmp_path)
    ours, head = load_published(tmp_path)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = theirs(pictures, output_hidden_states=True)
        found = ours(pictures, output_hidden_states=True)
    assert head == {}
    assert found.grid == (4, 4)
    torch.testing.assert_close(found.tokens, wanted.last_hidden_state[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled, wanted.last_hidden_state[:, 0], atol=1e-5, rtol=1e-5)
    for mine, one in zip(found.hidden_states, wanted.hidden_states[1:], strict=True):
        torch.testing.assert_close(mine, one, atol=1e-5, rtol=1e-5)


@pytest.mark.light("token-transforming", "weights")
@pytest.mark.parametrize("side", [32, 48])
@pytest.mark.parametrize("kind", [ViTModel, ViTMAEModel, Dinov2Model])
@torch.no_grad()
def test_published_vits_become_plain_ones_with_the_same_outputs(tmp_path, kind, side) -> None:
    fields = {name: value for name, value in TINY.items() if kind is not Dinov2Model or name != "intermediate_size"}
    torch.manual_seed(0)
    theirs = kind(kind.config_class(**fields)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    backbone = registry.create(str(tmp_path))
    plain = as_plain(backbone)
    pictures = torch.randn(2, 3, side, side)
    wanted, found = backbone(pictures), plain(pictures)
    assert found.grid == wanted.grid
    torch.testing.assert_close(found.tokens, wanted.tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled, wanted.pooled, atol=1e-5, rtol=1e-5)
    assert as_plain(plain) is plain


def test_encoders_of_other_blocks_have_no_plain_form() -> None:
    with torch.device("meta"):
        swiglu = Dinov2Config(**{**TINY, "use_swiglu_ffn": True})
        assert as_plain(PublishedBackbone(PublishedVisionConfig(vision_config=swiglu))) is None
        assert as_plain(PublishedBackbone(PublishedVisionConfig())) is None  # CLIP
        assert as_plain(registry.create("cvt-mini")) is None


def test_a_picture_of_another_size_gets_interpolated_positions_as_in_transformers(tmp_path):
    theirs = published()
    theirs.save_pretrained(tmp_path)
    ours, _ = load_published(tmp_path)
    pictures = torch.randn(2, 3, 48, 24)
    with torch.no_grad():
        wanted = theirs(pictures, interpolate_pos_encoding=True).last_hidden_state
        found = ours(pictures)
    assert found.grid == (6, 3)
    torch.testing.assert_close(found.tokens, wanted[:, 1:], atol=1e-5, rtol=1e-5)


def test_the_names_of_transformers_5_load_as_those_before_it(tmp_path):
    theirs = published(ViTForImageClassification, num_labels=5)
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "names").mkdir()
    theirs.config.save_pretrained(tmp_path / "names")
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "names/model.safetensors")
    pictures = torch.randn(2, 3, 32, 32)
    for folder in ("saved", "names"):
        ours, head = load_published(tmp_path / folder)
        with torch.no_grad():
            logits = torch.nn.functional.linear(ours(pictures).pooled, head["weight"], head["bias"])
            torch.testing.assert_close(logits, theirs(pictures).logits, atol=1e-5, rtol=1e-5)


def test_the_names_of_timm_load_with_the_size_told_by_shapes(tmp_path):
    torch.manual_seed(0)
    ours = registry.create("vit-mini", num_attention_heads=2, mlp_ratio=3.0).eval()  # heads 64 wide, as published
    names = {"class_token": "cls_token", "positions.table": "pos_embed"}
    state = {}
    for name, value in ours.state_dict().items():
        name = names.get(name, name).replace("patches.", "patch_embed.proj.").replace(".attn.out.", ".attn.proj.")
        state[name] = {"pos_embed": value[None], "cls_token": value[None, None]}.get(name, value).clone()
    save_file(state, tmp_path / "timm.safetensors")
    loaded, _ = load_published(tmp_path / "timm.safetensors")
    pictures = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(pictures).tokens, ours(pictures).tokens)


def test_weights_of_another_architecture_are_refused_with_the_first_names(tmp_path):
    save_file({"stage0.weight": torch.zeros(2), "stage1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no ViT; its first names are stage0.weight, stage1.weight"):
        load_published(tmp_path / "other.safetensors")
    published().save_pretrained(tmp_path / "less")
    PublishedConfig(**{**TINY, "num_hidden_layers": 4}).save_pretrained(tmp_path / "less")
    with pytest.raises(CheckpointError, match=r"12 missing \(blocks.3.attn.out.bias, .*\), 0 unexpected"):
        load_published(tmp_path / "less")


@pytest.mark.parametrize(("kind", "learned"), [("learned", True), ("sine", False), ("none", False)])
def test_positions_are_learned_fixed_or_left_out(kind, learned):
    model = registry.create("vit-mini", positions=kind, num_hidden_layers=1).eval()
    assert ("positions.table" in dict(model.named_parameters())) == learned
    picture = torch.randn(1, 3, 32, 32)
    moved = picture.roll(4, dims=-1)  # by one patch
    alike = torch.allclose(model(picture).pooled, model(moved).pooled, atol=1e-6)
    assert alike == (kind == "none")


def test_it_saves_and_loads_and_trains_with_checkpointed_activations(tmp_path):
    model = registry.create("vit-mini", num_hidden_layers=2, drop_path=0.2)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, PlainViT) and again.config.drop_path == 0.2
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(pictures).tokens, model.eval()(pictures).tokens)
    gradients = []
    for checkpointing in (False, True):
        again.train().zero_grad()
        if checkpointing:
            again.gradient_checkpointing_enable()
        torch.manual_seed(1)
        again(pictures).pooled.square().sum().backward()
        gradients.append(again.blocks[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_a_size_that_patches_do_not_fill_is_refused_with_one_that_they_do():
    model = registry.create("vit-mini", num_hidden_layers=1)
    with pytest.raises(UserError, match="30 x 32.*multiples of 4.*32 x 32"):
        model(torch.zeros(1, 3, 30, 32))
    with pytest.raises(UserError, match="does not divide into 5 heads"):
        registry.config("vit-mini", num_attention_heads=5)


@pytest.mark.parametrize("name", ["vit-mini", "cvt-mini", "t2t-vit-mini"])
def test_linear_layers_start_as_wide_as_the_configuration_says(name):
    for spread in (0.02, 0.1):
        found = registry.create(name, initializer_range=spread)
        widest = max((m.weight for m in found.modules() if isinstance(m, nn.Linear)), key=torch.numel)
        # PyTorch cuts the normal at two units of length, which changes nothing at such spreads.
        assert widest.std().item() == pytest.approx(spread, rel=0.05)
