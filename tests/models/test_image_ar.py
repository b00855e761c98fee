"""Models of image codes: causality, the cache, guidance, features, saving, what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tessera.errors import UserError
from tessera.generate.image_codes import sample_codes
from tessera.generate.sampling import Sampling
from tessera.models.image_ar import ImageARConfig, ImageARInTraining
from tessera.models.image_ar.modeling import predict, recognise
from tests.models.vq_tiny import codes, image_model, pictures, tokenizer

CLASSES = ("cat", "dog", "cow")


@pytest.mark.light("vit-vqgan", "exact")
@pytest.mark.parametrize("place", [0, 5, 15])
def test_scores_up_to_a_place_do_not_change_with_the_codes_from_there_on(place: int) -> None:
    model, ids = image_model(), codes()
    other = ids.clone()
    other[:, place:] = (other[:, place:] + 1) % 12
    ours, theirs = model(ids).logits, model(other).logits
    torch.testing.assert_close(ours[:, : place + 1], theirs[:, : place + 1])
    if place < 15:
        assert (ours[:, place + 1 :] != theirs[:, place + 1 :]).any()


@pytest.mark.light("vit-vqgan", "exact")
@pytest.mark.parametrize("pieces", [[1] * 16, [16], [3, 1, 12]])
def test_pieces_over_a_cache_score_as_the_whole_at_once(pieces: list[int]) -> None:
    model, ids = image_model(classes=CLASSES), codes()
    labels = torch.tensor([2, 0])
    embeds = torch.cat([model.start(2, labels), model.embed(ids[:, :-1])], dim=1)
    cache = model.cache(2)
    parts = [model.score(model.run(part, cache)) for part in embeds.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids, labels).logits, atol=2e-5, rtol=2e-5)
    with pytest.raises(ValueError, match="holds 16 positions, 17"):
        model.run(embeds[:, :1], cache)


def test_the_likeliest_codes_are_those_that_the_whole_model_scores_highest() -> None:
    model = image_model()
    ids = sample_codes(model, 2, sampling=Sampling(temperature=0))
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(model(ids).logits.argmax(-1), ids)


@pytest.mark.light("vit-vqgan", "exact")
def test_guidance_of_one_is_the_class_alone_and_of_nought_no_class() -> None:
    model, labels = image_model(classes=CLASSES), torch.tensor([1, 2])

    def drawn(guidance: float, labels: torch.Tensor | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        sampling = Sampling(temperature=1.0, top_k=6, top_p=0.9)
        return sample_codes(model, 2, labels=labels, sampling=sampling, guidance=guidance, generator=generator)

    assert torch.equal(drawn(1.0 + 1e-9, labels), drawn(1.0, labels))
    assert torch.equal(drawn(0.0, labels), drawn(1.0, None))
    assert not torch.equal(drawn(1.0, labels), drawn(1.0, None))
    with pytest.raises(UserError, match="guidance 3.0 needs a class"):
        sample_codes(model, 2, guidance=3.0)
    with pytest.raises(UserError, match="guidance is nan"):
        drawn(float("nan"), labels)


def test_guided_scores_are_the_sum_that_is_promised() -> None:
    model, labels = image_model(classes=CLASSES), torch.tensor([1])
    ids = sample_codes(model, 1, labels=labels, sampling=Sampling(temperature=0), guidance=2.5)
    told, untold = model(ids, labels).logits, model(ids).logits
    assert torch.equal((untold + 2.5 * (told - untold)).argmax(-1), ids)


def test_features_are_the_mean_over_the_codes_of_a_middle_block_that_sees_all_of_them() -> None:
    model, ids = image_model(depth=5), codes()
    assert model.config.middle == 2
    x = torch.cat([model.start(2), model.embed(ids)], dim=1)
    for block in model.blocks[:2]:
        x = block(x)
    torch.testing.assert_close(model.features(ids), x[:, 1:].mean(1))
    assert not torch.allclose(model.features(ids), model.features(ids, 5))
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 12
    assert (model.features(other) != model.features(ids)).any()
    assert [ImageARConfig(depth=depth).middle for depth in (24, 36, 1)] == [10, 15, 1]


def test_it_learns_codes_and_the_probe_alone_learns_classes() -> None:
    model, eyes = image_model(classes=CLASSES, class_dropout=0.5).train(), tokenizer()
    both = ImageARInTraining(model, eyes)
    batch = {"pixel_values": pictures(4), "labels": torch.tensor([0, 1, 2, 1])}
    total, number = predict(both, batch)["codes"]
    assert number == 4 * 16
    total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) is name.startswith("probe."), name
    assert all(parameter.grad is None for parameter in eyes.parameters())
    model.zero_grad()
    total, number = recognise(both, batch)["classes"]
    total.backward()
    assert number == 4
    assert {name for name, one in model.named_parameters() if one.grad is not None} == {
        "probe.1.weight",
        "probe.1.bias",
    }


def test_it_saves_and_loads_to_the_same_scores(tmp_path: Path) -> None:
    model = image_model(classes=CLASSES)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert tuple(again.config.classes) == CLASSES and again.config.middle == model.config.middle
    labels = torch.tensor([0, 3])
    assert torch.equal(again(codes(), labels).logits, model(codes(), labels).logits)
    assert torch.equal(again.probe(again.features(codes())), model.probe(model.features(codes())))


def test_what_cannot_be_is_said() -> None:
    model = image_model(classes=CLASSES)
    with pytest.raises(UserError, match="15 codes for a picture of 4 x 4"):
        model(codes()[:, :15])
    with pytest.raises(UserError, match="there are 3 classes"):
        model(codes(), torch.tensor([0, 4]))
    with pytest.raises(UserError, match="for a codebook of 12 codes, and the tokenizer has 9"):
        ImageARInTraining(model, tokenizer(codes=9))
    with pytest.raises(UserError, match="4 x 4 codes a picture, and the tokenizer gives 5 x 5 at 20 pixels"):
        ImageARInTraining(model, tokenizer(image_size=20))
    with pytest.raises(UserError, match="middle is 4; there are blocks 1 to 3"):
        image_model(middle=4)
    with pytest.raises(UserError, match="dropout is 1.0"):
        image_model(dropout=1.0)
