"""The emoji suite asks about held-out bases only, and its scores are those of the likelihoods it was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL

from tessera.data.worlds.emoji import EmojiWorld
from tessera.errors import UserError
from tessera.evaluate import emoji_suite
from tessera.evaluate.emoji_suite import CHANCE, FIRST, NAMES, RECALL, evaluate_emoji, heldout_bases, spread
from tests.data.test_emoji import needs_font


class Stub:
    """Captions and draws nothing much; what is likely is said by the test."""

    model = builder = None

    def encode(self, images: list[Any]) -> torch.Tensor:
        return torch.zeros(len(images), 1, 1)

    def caption(self, images: list[Any]) -> list[str]:
        return ["a thing"] * len(images)

    def draw(self, texts: list[str], *, seed: int = 0) -> list[PIL.Image]:
        return [PIL.new("RGB", (64, 64))] * len(texts)


@needs_font
def test_each_held_out_base_stands_once_and_none_of_its_variants_was_in_training() -> None:
    world = EmojiWorld()
    bases = [sample.meta["base"] for sample in heldout_bases(world)]
    assert len(bases) == len(set(bases)) > NAMES
    assert not set(bases) & {one.base for one in world.split("train")}


@needs_font
@pytest.mark.parametrize(
    ("size", "knows", "recall"), [(200, True, 1.0), (20, True, 1.0), (200, False, 0.0)], ids=["all", "few", "none"]
)
def test_names_that_the_picture_makes_likelier_are_found_and_names_that_always_are_likely_are_not(
    size: int, knows: bool, recall: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def likely(model: Any, builder: Any, embeds: torch.Tensor, asked: str, answers: list[str]) -> np.ndarray:
        always = np.linspace(-40, 0, len(answers))  # some names are likelier whatever is shown
        table = np.tile(always, (len(embeds), 1))
        for row, own in enumerate(spread(len(embeds), len(answers))):
            table[row, own] += 5 if knows else -5
        return table

    monkeypatch.setattr(emoji_suite, "log_likelihoods", likely)
    found = evaluate_emoji(Stub(), size)  # type: ignore[arg-type]
    assert found.scores[RECALL].value == recall
    assert found.scores[RECALL].n == size // 2
    assert (found.scores[CHANCE].value, found.scores[CHANCE].n) == (FIRST / NAMES, NAMES)
    assert [row["truth"] for row in found.captions] == [row["prompt"] for row in found.drawings]
    assert len(found.captions) == min(12, size // 2)


def test_without_a_font_the_suite_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESSERA_EMOJI_FONT", raising=False)
    monkeypatch.setattr("tessera.data.worlds.emoji_font.FONTS", ())
    with pytest.raises(UserError, match="no colour emoji font"):
        evaluate_emoji(Stub())  # type: ignore[arg-type]


def test_indices_are_spread_from_the_first_on() -> None:
    assert spread(4, 10) == [0, 2, 5, 7]
    assert spread(12, 3) == [0, 1, 2]
