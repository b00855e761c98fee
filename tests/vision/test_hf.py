"""Published encoders behind the interface of all backbones."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from tessera.errors import CheckpointError, UserError
from tessera.vision import registry
from tessera.vision.hf import PublishedBackbone

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CLIP = {**SIZES, "intermediate_size": 64}
KINDS = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**CLIP)),
    "vit": lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=64)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, layerscale_value=0.7)),
}


def published(kind):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_gives_the_outputs_of_its_class(kind, size, tmp_path):
    theirs = published(kind)
    theirs.save_pretrained(tmp_path)
    ours = registry.create(str(tmp_path))
    pictures = torch.randn(2, 3, *size)
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        wanted = theirs(pictures, output_hidden_states=True, **options)
        found = ours(pictures, output_hidden_states=True)
    normed = theirs.post_layernorm(wanted.last_hidden_state) if kind == "clip" else wanted.last_hidden_state
    close = {"atol": 1e-5, "rtol": 1e-5}
    assert found.grid == ours.grid_of(*size) == (size[0] // 8, size[1] // 8)
    torch.testing.assert_close(found.tokens, normed[:, 1:], **close)
    torch.testing.assert_close(found.pooled, normed[:, 0], **close)
    if kind != "vit":  # whose pooler is a layer of its own
        torch.testing.assert_close(found.pooled, wanted.pooler_output, **close)
    assert ours.width == found.tokens.shape[-1] == 32
    for mine, one in zip(found.hidden_states, wanted.hidden_states[1:], strict=True):
        torch.testing.assert_close(mine, one, **close)


@pytest.mark.light("gr-1", "weights")
@pytest.mark.parametrize("whole", [False, True])
def test_a_masked_autoencoder_hides_and_shuffles_nothing(whole, tmp_path):
    torch.manual_seed(0)
    config = ViTMAEConfig(**SIZES, intermediate_size=64, decoder_hidden_size=16, decoder_num_attention_heads=2)
    saved = ViTMAEForPreTraining(config) if whole else ViTMAEModel(config)
    saved.save_pretrained(tmp_path)
    ours = registry.create(str(tmp_path))
    theirs = (saved.vit if whole else saved).eval()
    theirs.config.mask_ratio = 0.0
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = ours(pictures, output_hidden_states=True)
        wanted = theirs(pictures, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        again = ours(pictures)
        moved = ours(pictures.roll(8, dims=3))
        wider = ours(torch.randn(1, 3, 48, 24))
    torch.testing.assert_close(found.tokens, wanted[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled, wanted[:, 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(again.tokens, found.tokens) and not torch.equal(moved.tokens, found.tokens)
    assert wider.grid == (6, 3) and len(found.hidden_states) == 2
    ours.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(registry.create(str(tmp_path / "ours"))(pictures).tokens, found.tokens)


def test_a_whole_clip_is_read_for_its_image_half(tmp_path):
    torch.manual_seed(0)
    words = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(vision_config=CLIP, text_config={**words, "vocab_size": 50}, projection_dim=16)).eval()
    clip.save_pretrained(tmp_path)
    pictures = torch.randn(2, 3, 32, 32)
    wanted = clip.vision_model(pictures).pooler_output
    torch.testing.assert_close(registry.create(str(tmp_path))(pictures).pooled, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapped_encoder_saves_and_loads_as_one_of_ours(kind, tmp_path):
    published(kind).save_pretrained(tmp_path / "theirs")
    first = registry.create(str(tmp_path / "theirs"))
    first.save_pretrained(tmp_path / "ours")
    second, third = registry.create(str(tmp_path / "ours")), AutoModel.from_pretrained(tmp_path / "ours")
    assert isinstance(second, PublishedBackbone) and isinstance(third, PublishedBackbone)
    pictures = torch.randn(1, 3, 32, 32)
    for again in (second, third):
        assert torch.equal(again(pictures).pooled, first(pictures).pooled)


def test_a_backbone_of_ours_loads_from_its_folder_with_its_weights(tmp_path):
    first = registry.create("vit-mini", num_hidden_layers=1).eval()
    first.save_pretrained(tmp_path)
    pictures = torch.randn(1, 3, 32, 32)
    assert torch.equal(registry.create(str(tmp_path))(pictures).pooled, first(pictures).pooled)


def test_what_is_no_folder_of_an_image_encoder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere/there is no folder of a model"):
        registry.create("nowhere/there")
    LlamaConfig().save_pretrained(tmp_path / "words")
    with pytest.raises(CheckpointError, match="holds a 'llama', which is no image encoder of those known: .*clip"):
        registry.create(str(tmp_path / "words"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(CheckpointError, match="'no-such-thing', which is no image encoder"):
        registry.create(str(tmp_path / "odd"))


def test_a_folder_whose_weights_are_of_another_architecture_names_the_first_that_differ(tmp_path):
    published("dinov2").save_pretrained(tmp_path)
    ViTConfig(**SIZES, intermediate_size=64).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"does not hold a ViTModel: of its weights are \d+ missing \(.*unexpected"
    ):
        registry.create(str(tmp_path))


def test_the_fields_of_a_folder_cannot_be_changed(tmp_path):
    with pytest.raises(UserError, match="image_size cannot be changed"):
        registry.create(str(tmp_path), image_size=64)
