"""Stage A of VL-GPT: what is trained, what is called, what is returned."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from tessera.errors import UserError
from tessera.models.vlgpt import CausalTokenizerModel
from tests.models.vlgpt_tiny import D, N, pixels, tiny_tokenizer


def targets(count=2, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 10, generator=draw), torch.randn(count, 5, 12, generator=draw)


def never():
    raise AssertionError("this encoder must not be called")


def test_loss_is_the_weighted_sum_of_both_mean_squared_errors():
    model, (image, text) = tiny_tokenizer(image_weight=2.0, text_weight=0.5), targets()
    out = model(pixels(2), image_target=image, text_target=lambda: text)
    means = [(out.image_condition - image).square().mean(), (out.text_condition - text).square().mean()]
    torch.testing.assert_close(out.loss, 2.0 * means[0] + 0.5 * means[1])
    assert (out.image.number, out.text.number, out.embeds.shape) == (2, 2, (2, N, D))


def test_two_half_batches_with_the_whole_count_give_the_gradient_of_the_whole_batch():
    model, (image, text) = tiny_tokenizer(), targets(4)
    model(pixels(4), image_target=image, text_target=text).loss.backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part in (slice(0, 1), slice(1, 4)):
        model(pixels(4)[part], image_target=image[part], text_target=text[part], num_samples=4).loss.backward()
    for name, parameter in model.named_parameters():
        if name in whole:
            torch.testing.assert_close(parameter.grad, whole[name], atol=1e-6, rtol=1e-4)


@pytest.mark.light("vl-gpt", "exact")
@pytest.mark.parametrize("off", ["image", "text"])
def test_a_weight_of_zero_never_calls_that_encoder_and_leaves_its_head_without_gradient(off):
    model, (image, text) = tiny_tokenizer(**{f"{off}_weight": 0.0}), targets()
    given = {"image_target": image, "text_target": text, f"{off}_target": never}
    out = model(pixels(2), **given)
    out.loss.backward()
    heads = {"image": model.detokenizer.image_head, "text": model.detokenizer.text_head}
    assert getattr(out, off) is None
    for name, head in heads.items():
        assert (head.weight.grad is None) == (name == off)


def test_the_vision_encoder_stays_frozen_and_in_evaluation_mode():
    model, (image, text) = tiny_tokenizer().train(), targets()
    model(pixels(2), image_target=image, text_target=text).loss.backward()
    assert model.tokenizer.training and not any(m.training for m in model.vision.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.vision.parameters())
    trained = [*model.tokenizer.parameters(), *model.detokenizer.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.light("vl-gpt", "exact")
def test_stage_a_builds_no_diffusion_model():
    assert not any(type(module).__module__.startswith("diffusers") for module in tiny_tokenizer().modules())


def test_cached_patch_features_give_the_same_loss_as_pixels():
    model, (image, text) = tiny_tokenizer(), targets()
    cached = model(patch_features=model.patch_features(pixels(2)), image_target=image, text_target=text)
    assert torch.equal(cached.loss, model(pixels(2), image_target=image, text_target=text).loss)


@pytest.mark.parametrize(("layer", "keep", "tokens"), [(-1, True, 5), (-2, True, 5), (-2, False, 4)])
def test_vision_layer_and_class_token_are_those_of_the_configuration(layer, keep, tokens):
    model = tiny_tokenizer(vision_layer=layer, keep_class_token=keep)
    states = model.vision(pixels(2), output_hidden_states=True).hidden_states[layer]
    features = model.patch_features(pixels(2))
    assert features.shape == (2, tokens, 24) and torch.equal(features, states[:, 5 - tokens :])


def test_several_vision_layers_are_read_side_by_side_and_saved(tmp_path):
    model = tiny_tokenizer(vision_layer=[0, -1])
    states = model.vision(pixels(2), output_hidden_states=True).hidden_states
    features = model.patch_features(pixels(2))
    assert torch.equal(features, torch.cat([states[0], states[-1]], dim=-1))
    model.save_pretrained(tmp_path)
    again = CausalTokenizerModel.from_pretrained(tmp_path)
    assert torch.equal(again.encode(features), model.eval().encode(features))


def test_a_missing_target_a_wrong_shape_and_two_zero_weights_are_told_in_one_sentence():
    model, (image, text) = tiny_tokenizer(), targets()
    with pytest.raises(UserError, match="text_weight is 1.0 but no text target"):
        model(pixels(2), image_target=image)
    with pytest.raises(UserError, match="image target has shape"):
        model(pixels(2), image_target=image[:, :2], text_target=text)
    with pytest.raises(UserError, match="both 0"):
        tiny_tokenizer(image_weight=0.0, text_weight=0.0)(pixels(2), image_target=image)
    with pytest.raises(UserError, match="pixel_values or patch_features"):
        model()


def test_saved_weights_load_to_the_same_outputs_still_frozen(tmp_path):
    model = tiny_tokenizer(query_std=0.5)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    for cls in (CausalTokenizerModel, AutoModel):
        again = cls.from_pretrained(tmp_path)
        assert torch.equal(again(pixels(2)).text_condition, model.eval()(pixels(2)).text_condition)
        assert not any(p.requires_grad for p in again.vision.parameters())
        assert all(p.requires_grad for p in again.tokenizer.parameters())


def test_gradient_checkpointing_changes_no_gradient():
    model, (image, text) = tiny_tokenizer().train(), targets()
    model(pixels(2), image_target=image, text_target=text).loss.backward()
    plain = [p.grad.clone() for p in model.tokenizer.parameters()]
    model.zero_grad()
    model.activation_checkpointing_enable()
    assert model.tokenizer.decoder.blocks[0].gradient_checkpointing
    model(pixels(2), image_target=image, text_target=text).loss.backward()
    for mine, theirs in zip(model.tokenizer.parameters(), plain, strict=True):
        assert torch.equal(mine.grad, theirs)


def test_stage_a_overfits_two_pictures():
    model, (image, text) = tiny_tokenizer().train(), targets()
    features = model.patch_features(pixels(2))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = model(patch_features=features, image_target=image, text_target=text).loss
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2
