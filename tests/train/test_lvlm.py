"""Learning to speak of pictures: what is learned from is what the whole model sees, with frozen eyes and with eyes that
learn, whole or in tiles; and PRIOR's loss on packed rows."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from tessera.data.blind import ScoredBatch
from tessera.data.images import Pixels
from tessera.data.packing import collate_rows
from tessera.data.sample import Image
from tessera.data.sequence import IGNORED, Sequence
from tessera.data.tiling import TiledPixels
from tessera.objectives.importance import Importance
from tessera.train.lvlm import NextWord, Prioritised, count_words
from tests.models.lvlm_tiny import BEGIN, END, PICTURE, SLOT, tiny_model, words

PIXELS = Pixels(16)


def caption(length: int, seed: int) -> Sequence:
    ids = np.array([BEGIN, *PICTURE, *words(length, seed), END], np.int32)
    labels = np.where((ids == SLOT) | (ids == BEGIN), IGNORED, ids)
    picture = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    return Sequence(ids, labels, np.zeros(len(ids), bool), (Image(picture, key=str(seed)),), str(seed))


@pytest.fixture
def batch() -> ScoredBatch:
    """Three captions in two rows, each word with a blind probability."""
    rows = collate_rows([[caption(5, 1), caption(3, 2)], [caption(8, 3)]], 24, 0)
    blind = torch.rand(rows.labels.shape, generator=torch.Generator().manual_seed(0)) * (rows.labels != IGNORED)
    return ScoredBatch(**{field.name: getattr(rows, field.name) for field in fields(rows)}, blind=blind)


def gradients(objective, batch):
    """The terms, and the gradients of connector and language model."""
    model = objective.model
    model.zero_grad()
    terms = objective(model, batch)
    terms["words"][0].backward()
    return terms, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def frozen(**fields):
    model = tiny_model(**fields)
    model.vision.requires_grad_(False)
    return model


def test_pictures_looked_at_once_teach_what_pictures_in_the_batch_teach(batch: ScoredBatch) -> None:
    model = frozen()
    terms, _ = gradients(NextWord(model, PIXELS), batch)
    pixels = torch.from_numpy(np.stack([PIXELS.one(image.pil()) for image in batch.images]))
    whole = model(batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, pixel_values=pixels)
    torch.testing.assert_close(terms["words"][0] / terms["words"][1], whole.loss, atol=1e-3, rtol=1e-3)
    assert terms["words"][1] == whole.num_text_targets == count_words(batch)["words"]


def test_eyes_that_learn_are_asked_anew_and_get_the_gradient_of_the_whole_model(batch: ScoredBatch) -> None:
    model = tiny_model()
    objective = NextWord(model, PIXELS)
    terms, ours = gradients(objective, batch)
    assert not objective.store._rows
    pixels = torch.from_numpy(np.stack([PIXELS.one(image.pil()) for image in batch.images]))
    model.zero_grad()
    given = {"labels": batch.labels, "segment_ids": batch.segment_ids, "pixel_values": pixels, "num_text": 1}
    model(batch.input_ids, **given).loss.backward()
    theirs = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert ours.keys() == theirs.keys() and any(name.startswith("vision.") for name in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)


def test_tiles_that_are_looked_at_once_are_those_of_the_whole_model() -> None:
    model, tiled = frozen(), TiledPixels(16, most=4)
    objective = NextWord(model, tiled)
    noise = np.random.default_rng(0)
    images = [
        Image(noise.integers(0, 255, (16, width, 3), np.uint8), key=f"{width} {number}")
        for number, width in enumerate((64, 16, 32))
    ]
    pixels = torch.from_numpy(np.stack([view for image in images for view in tiled.several(image.pil())]))
    for _ in range(2):  # the second time from the store
        found = objective.embeds(model, images)
        assert len(found) == 5 + 1 + 3
        torch.testing.assert_close(found, model.encode_images(pixels), atol=2e-3, rtol=2e-3)
    model.vision.requires_grad_(True)
    torch.testing.assert_close(objective.embeds(model, images), model.encode_images(pixels))


def test_a_batch_without_pictures_leaves_the_connector_a_gradient_of_zeros() -> None:
    model = frozen()
    model.language_model.requires_grad_(False)
    ids = np.array([BEGIN, *words(5, 1), END], np.int32)
    plain = Sequence(ids, np.where(ids == BEGIN, IGNORED, ids), np.zeros(len(ids), bool), (), "plain")
    _, found = gradients(NextWord(model, PIXELS), collate_rows([[plain]], 12, 0))
    assert found and all(name.startswith("connector.") and not gradient.any() for name, gradient in found.items())


@pytest.mark.light("prior", "exact")
def test_alpha_0_teaches_a_language_model_with_eyes_what_next_token_prediction_does(batch: ScoredBatch) -> None:
    model = frozen()
    plain, ours = gradients(NextWord(model, PIXELS), batch)
    weighted, theirs = gradients(Prioritised(model, PIXELS, Importance(alpha=0.0)), batch)
    torch.testing.assert_close(weighted["words"][0], plain["words"][0], rtol=1e-6, atol=0)
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-7)
    assert weighted["covariance"][0] == 0


@pytest.mark.light("prior", "exact")
def test_a_packed_caption_s_loss_is_that_of_the_caption_alone(batch: ScoredBatch) -> None:
    model, total = frozen(), 0.0
    objective = Prioritised(model, PIXELS, Importance())
    for number, (length, seed, row) in enumerate([(5, 1, 0), (3, 2, 0), (8, 3, 1)]):
        alone = collate_rows([[caption(length, seed)]], 24, 0)
        own = batch.blind[row][batch.segment_ids[row] == (1, 2, 1)[number]]
        blind = torch.zeros(1, 24)
        blind[0, : len(own)] = own
        given = {field.name: getattr(alone, field.name) for field in fields(alone)}
        total += objective(model, ScoredBatch(**given, blind=blind))["words"][0].detach()
    together = objective(model, batch)
    torch.testing.assert_close(together["words"][0].detach(), total, rtol=1e-5, atol=1e-5)
    assert set(together) == set(count_words(batch))
    assert {term[1] for term in together.values()} == set(count_words(batch).values())


@pytest.mark.light("prior", "exact")
def test_the_weights_add_no_parameter_to_the_model(batch: ScoredBatch) -> None:
    model = frozen()
    before = [(name, tuple(weight.shape)) for name, weight in model.named_parameters()]
    objective = Prioritised(model, PIXELS, Importance())
    objective(model, batch)
    assert [(name, tuple(weight.shape)) for name, weight in model.named_parameters()] == before
    assert not any(isinstance(held, torch.nn.Parameter) for held in vars(objective).values())
