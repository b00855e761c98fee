"""A backbone with a head: built by name, saved, loaded, adapted."""

from __future__ import annotations

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from PIL import Image as PIL
from transformers import AutoModel, AutoModelForImageClassification, CLIPVisionConfig, CLIPVisionModel

import tessera
from tessera.classifier import Classifier
from tessera.errors import CheckpointError, UserError
from tessera.models.classifier import ImageClassifier
from tessera.vision import registry

NAMES = ("cat", "dog", "cow")


def classifier(name="vit-mini", **changes):
    torch.manual_seed(0)
    changes = {"num_hidden_layers": 1} | changes if name == "vit-mini" else changes
    return ImageClassifier.over(registry.create(name, **changes), NAMES).eval()


def pictures(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["vit-mini", "vit-mini-64", "cvt-mini"])
def test_any_backbone_by_name_gives_logits_and_a_loss_that_trains_it(name):
    model = ImageClassifier.over(name, NAMES)
    out = model(pictures(size=model.config.image_size), labels=torch.tensor([0, 2]))
    assert out.logits.shape == (2, 3)
    wanted = torch.nn.functional.cross_entropy(out.logits, torch.tensor([0, 2]))
    torch.testing.assert_close(out.loss, wanted)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_it_saves_and_loads_to_equal_logits_through_every_door(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    again = [kind.from_pretrained(tmp_path) for kind in (ImageClassifier, AutoModel, AutoModelForImageClassification)]
    for other in again:
        assert other.config.classes == NAMES and other.config.image_size == 32
        assert torch.equal(other(pictures()).logits, model(pictures()).logits)


def test_a_backbone_from_a_folder_keeps_its_weights_under_a_new_head(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)).eval()
    eyes.save_pretrained(tmp_path / "eyes")
    model = ImageClassifier.over(str(tmp_path / "eyes"), NAMES).eval()
    torch.testing.assert_close(model.backbone(pictures()).pooled, eyes(pictures()).pooler_output, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "model")
    again = ImageClassifier.from_pretrained(tmp_path / "model")
    assert torch.equal(again(pictures()).logits, model(pictures()).logits)


def test_adapters_of_peft_train_alone_and_merge(tmp_path):
    model = classifier()
    before = model(pictures()).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"], modules_to_save=["head"], r=2))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "head" in name for name in trained) and len(trained) == 4
    torch.testing.assert_close(adapted(pixel_values=pictures()).logits, before)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    changed = adapted(pixel_values=pictures()).logits
    assert not torch.allclose(changed, before)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(classifier(), tmp_path)
    torch.testing.assert_close(again(pixel_values=pictures()).logits, changed)
    torch.testing.assert_close(adapted.merge_and_unload()(pictures()).logits, changed, atol=1e-5, rtol=1e-4)


def test_classes_must_be_two_or_more_of_different_names():
    for names in (("cat",), ("cat", "cat")):
        with pytest.raises(UserError, match="two or more classes of different names"):
            ImageClassifier.over("vit-mini", names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("classifier") / "model"
    Classifier(classifier()).save(place)
    return place


def test_a_saved_classifier_loads_by_its_card_and_names_classes_with_probabilities(folder):
    used = tessera.load(folder)
    assert isinstance(used, Classifier) and used.classes == NAMES
    image = PIL.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3))
    found = used.classify(image)
    assert {name for name, _ in found} == set(NAMES)
    assert sum(share for _, share in found) == pytest.approx(1, abs=1e-5)
    assert [share for _, share in found] == sorted((share for _, share in found), reverse=True)
    pair = used.classify([image, image], top=1)
    assert [[name for name, _ in row] for row in pair] == [[found[0][0]]] * 2
    vectors = used.embed([image])
    with torch.no_grad():
        wanted = used.model.backbone(torch.from_numpy(used.pixels.one(image))[None]).pooled
    np.testing.assert_allclose(vectors, wanted.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="vectors of pictures alone"):
        used.embed(["a word"])


def change_config(place, **values):
    file = place / "config.json"
    held = json.loads(file.read_text())
    for name, value in values.items():
        outer, _, inner = name.rpartition("__")
        (held[outer] if outer else held)[inner] = value
    file.write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_sise": 3}, "unknown key 'image_sise'; did you mean 'image_size'"),
        ({"backbone_config__depht": 3}, "backbone_config in .* has an unknown key 'depht'"),
        ({"backbone_config__num_hidden_layers": 3}, r"do not fit its config.json: 24 missing \(backbone.blocks.1."),
        ({"backbone_config__model_type": "no-such"}, "no-such"),
        ({"fit": "stretch"}, "fit"),
        ({"model_type": "llama"}, "of a model of type 'llama', not 'tessera-image-classifier'"),
    ],
)
def test_a_spoilt_folder_says_what_is_wrong_with_it(change, sentence, folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "model")
    change_config(place, **change)
    with pytest.raises(CheckpointError, match=sentence):
        tessera.load(place)


def test_a_card_of_another_kind_or_version_is_refused(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "model")
    for card, sentence in (
        ({"format": 1, "model": "image-classifer"}, "unknown kind 'image-classifer'; did you mean 'image-classifier'"),
        ({"format": 2, "model": "image-classifier"}, "has format 2, this version reads 1"),
        ({"format": 1, "model": "vl-gpt"}, "of a model of type 'tessera-image-classifier', not 'tessera_vlgpt'"),
    ):
        (place / "tessera.json").write_text(json.dumps(card))
        with pytest.raises(CheckpointError, match=sentence):
            tessera.load(place)


def test_a_head_over_the_mean_of_the_tokens_and_its_vectors_do_not_see_the_class_token(tmp_path):
    model = ImageClassifier.over(registry.create("vit-mini", num_hidden_layers=1), NAMES, reads="tokens").eval()
    seen = model.backbone(pictures())
    torch.testing.assert_close(model(pictures()).logits, model.head(seen.tokens.mean(1)))
    Classifier(model).save(tmp_path)
    again = tessera.load(tmp_path)
    assert again.model.config.reads == "tokens"
    picture = PIL.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    values = torch.from_numpy(again.pixels.one(picture))[None]
    wanted = again.model.backbone(values).tokens.mean(1)[0].detach().numpy()
    np.testing.assert_allclose(again.embed([picture])[0], wanted, rtol=1e-4, atol=1e-5)
