"""Likelihoods of many answers behind one prompt are those of each answer in a sequence of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.data.sample import Image, question
from tessera.data.sequence import SequenceBuilder
from tessera.evaluate import likelihood
from tessera.evaluate.likelihood import log_likelihoods
from tessera.models.vlgpt import VLGPTForConditionalGeneration
from tests.data.tiny import tokenizer
from tests.models.vlgpt_tiny import D, N, text_config, tiny_model

ASKED = "what is at the top?"
ANSWERS = ["a circle", "a red circle at the left", "red", "a blue square", "a blue square"]


@pytest.fixture(scope="module")
def words() -> SequenceBuilder:
    return SequenceBuilder(tokenizer(), N)


@pytest.fixture(scope="module")
def model(words: SequenceBuilder) -> VLGPTForConditionalGeneration:
    ids = {"image_start_id": words.open_id, "image_end_id": words.close_id, "image_placeholder_id": words.place_id}
    text = text_config(vocab_size=len(tokenizer()), bos_token_id=words.bos_id, eos_token_id=words.eos_id)
    return tiny_model(text=text, **ids).eval()


def _alone(model: VLGPTForConditionalGeneration, words: SequenceBuilder, embeds: torch.Tensor, answer: str) -> float:
    built = words.build(question(Image(b""), ASKED, answer))
    ids, labels = (torch.from_numpy(row).long()[None] for row in (built.input_ids, built.labels))
    with torch.no_grad():
        return -float(model(ids, labels=labels, image_embeds=embeds[None]).text.total)


@pytest.mark.parametrize(("room", "pictures"), [(256, 32), (9, 2)])
def test_each_answer_is_as_likely_as_alone(
    model: VLGPTForConditionalGeneration,
    words: SequenceBuilder,
    room: int,
    pictures: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(likelihood, "ROOM", room)
    monkeypatch.setattr(likelihood, "PICTURES", pictures)
    embeds = 30 * torch.randn(5, N, D, generator=torch.Generator().manual_seed(0))
    found = log_likelihoods(model, words, embeds, ASKED, ANSWERS)
    alone = np.array([[_alone(model, words, one, answer) for answer in ANSWERS] for one in embeds])
    np.testing.assert_allclose(found, alone, atol=1e-4)
    np.testing.assert_allclose(found[:, 3], found[:, 4], atol=1e-5)
    assert found[:, 0].std() > 1e-3  # the pictures matter
