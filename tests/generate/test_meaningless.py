"""Prompts without a meaningful picture, word for word and number for number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.errors import UserError
from tessera.generate.meaningless import CALIBRATION_STEP, DECODING_STEP, diffuse, meaningless

PAD, PLACE, UNK = 0, 9, 3
IDS = torch.tensor([[0, 0, 1, 9, 9, 4], [1, 9, 9, 9, 9, 5], [1, 4, 5, 6, 7, 8]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [1] * 6])


def asked(kind, inputs=None, **options):
    given = {"input_ids": IDS, "attention_mask": MASK, "pixel_values": torch.zeros(3, 3, 2, 2)}
    return meaningless(inputs or given, kind, image_token_id=PLACE, unk_token_id=UNK, **options)


def rows(inputs):
    return [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def test_none_drops_the_placeholders_of_each_row_and_keeps_the_padding_on_the_left():
    (found,) = asked("none")
    assert set(found) == {"input_ids", "attention_mask"}
    assert rows(found) == [[1, 4], [1, 5], [1, 4, 5, 6, 7, 8]]
    assert found["attention_mask"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [1] * 6]
    assert (found["input_ids"] != PLACE).all()


def test_unk_puts_one_unknown_word_for_each_picture_also_where_two_stand_side_by_side():
    (found,) = asked("unk")
    assert rows(found) == [[1, UNK, 4], [1, UNK, UNK, 5], [1, 4, 5, 6, 7, 8]]


def test_where_pictures_differ_in_length_each_run_of_placeholders_is_one():
    ids = torch.tensor([[1, 9, 9, 9, 2, 9, 4]])
    (found,) = asked("unk", {"input_ids": ids, "pixel_values": torch.zeros(2, 3, 2, 2)})
    assert rows(found) == [[1, UNK, 2, UNK, 4]]
    for given in ({}, {"image_embeds": torch.zeros(4, 8)}, {"pixel_values": torch.zeros(4, 8)}):
        (found,) = asked("unk", {"input_ids": ids, **given})
        assert rows(found) == [[1, UNK, 2, UNK, 4]]


def test_both_is_none_and_unk():
    assert [rows(found) for found in asked("both")] == [rows(asked("none")[0]), rows(asked("unk")[0])]


@pytest.mark.parametrize(("kind", "value"), [("zeros", 0.0), ("ones", 1.0)])
def test_constant_pictures_keep_the_words(kind, value):
    (found,) = asked(kind)
    assert (found["pixel_values"] == value).all()
    assert torch.equal(found["input_ids"], IDS)


def test_the_noise_is_that_of_diffusion_over_a_thousand_steps():
    pixels = torch.linspace(-2, 2, 3 * 8 * 8).view(1, 3, 8, 8)
    grid = np.linspace(-6, 6, 1000)
    kept = np.cumprod(1 - (1 / (1 + np.exp(-grid)) * (0.005 - 1e-5) + 1e-5))
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(4))
    for step in (0, DECODING_STEP, CALIBRATION_STEP):
        wanted = np.sqrt(kept[step]) * pixels + np.sqrt(1 - kept[step]) * noise
        torch.testing.assert_close(diffuse(pixels, step, seed=4), wanted.float(), atol=1e-5, rtol=1e-4)
    assert (diffuse(pixels, 0) - pixels).abs().max() < 0.05  # nearly all picture
    far = diffuse(100 * torch.ones(1, 3, 64, 64), CALIBRATION_STEP).mean()
    assert far == pytest.approx(100 * np.sqrt(kept[-1]), abs=0.1)


def test_noise_is_drawn_from_its_seed_and_goes_with_the_words():
    (one,), (same,), (other,) = asked("noise", seed=1), asked("noise", seed=1), asked("noise", seed=2)
    assert torch.equal(one["pixel_values"], same["pixel_values"])
    assert not torch.equal(one["pixel_values"], other["pixel_values"])
    assert torch.equal(one["input_ids"], IDS)


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        ("nune", {}, "no meaningless picture 'nune'; did you mean 'none'"),
        ("unk", {"unk_token_id": None}, "'unk' needs the tokenizer's unknown word"),
        ("both", {"unk_token_id": None}, "'both' needs the tokenizer's unknown word"),
        ("noise", {"inputs": {"input_ids": IDS}}, "'noise' changes pixels and none were given"),
        ("none", {"inputs": {"input_ids": torch.tensor([[4], [9]])}}, "row 1 of the prompts is pictures alone"),
        ("noise", {"noise_step": 1000}, "noise_step is 1000; it is one of 0 to 999"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(kind, given, sentence):
    inputs = given.pop("inputs", {"input_ids": IDS, "pixel_values": torch.zeros(3, 3, 2, 2)})
    with pytest.raises(UserError, match=sentence):
        meaningless(inputs, kind, **{"image_token_id": PLACE, "unk_token_id": UNK, **given})
