"""The suite gives full marks to a model that knows the truth, and none to one that does not look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

from tessera.data.worlds.scenes.captions import canonical_caption
from tessera.data.worlds.scenes.draw import draw
from tessera.data.worlds.scenes.graph import Scene
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.evaluate.scenes_suite import FRECHET, FRECHET_FLOOR, SEED, SuiteResult, evaluate_scenes, heldout_scenes

SIZE = 40


def _key(image: Any) -> bytes:
    return np.asarray(image).tobytes()


class Oracle:
    """Knows every scene of the suite by its pixels, and every question by its words."""

    def __init__(self) -> None:
        numbers: list[tuple[int | tuple[int, ...], int]] = [((1, 2), 0), ((3, 4), 1), (1, 2), (2, 3), ((1, 2, 3, 4), 4)]
        scenes: list[Scene] = [scene for count, stream in numbers for scene in heldout_scenes(SIZE, count, stream)]
        self.sentences = {_key(draw(scene)): canonical_caption(scene) for scene in scenes}
        self.scenes = {canonical_caption(scene): scene for scene in scenes}
        source = ScenesWorld(seed=SEED).source("questions", "heldout")
        self.answers = {
            (_key(sample.images[0].pil()), sample.segments[1].text): str(sample.meta["answer"])
            for sample in map(source.__getitem__, range(3 * SIZE))
        }

    def caption(self, images: list[Any]) -> list[str]:
        return [self.sentences[_key(image)] for image in images]

    def answer(self, images: list[Any], questions: list[str]) -> list[str]:
        return [self.answers[_key(image), asked] for image, asked in zip(images, questions, strict=True)]

    def draw(self, texts: list[str], *, seed: int = 0) -> list[PIL.Image]:
        return [PIL.fromarray(draw(self.scenes[text])) for text in texts]

    def reconstruct(self, images: Sequence[Any], *, seed: int = 0) -> list[PIL.Image]:
        return [PIL.fromarray(image) for image in images]


class Blind(Oracle):
    """Says and draws the same of everything."""

    def caption(self, images: list[Any]) -> list[str]:
        return ["a large plain mauve teapot"] * len(images)

    def answer(self, images: list[Any], questions: list[str]) -> list[str]:
        return ["teapot"] * len(images)

    def draw(self, texts: list[str], *, seed: int = 0) -> list[PIL.Image]:
        return [PIL.new("RGB", (64, 64), (128, 128, 128 + index % 2)) for index, _ in enumerate(texts)]

    def reconstruct(self, images: Sequence[Any], *, seed: int = 0) -> list[PIL.Image]:
        return self.draw([""] * len(images))


def _thumbnails(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Features for tests: each picture as 4 x 4 pixels."""
    return np.stack([np.asarray(PIL.fromarray(one).resize((4, 4))).ravel() for one in pictures])


@pytest.fixture(scope="module")
def results() -> dict[str, SuiteResult]:
    return {one.__name__: evaluate_scenes(one(), SIZE, _thumbnails) for one in (Oracle, Blind)}


SHARES = (
    "caption, 1-2 objects: every colour and shape",
    "questions, all types",
    "drawing, 1 object: all right",
    "drawing, 2 objects: and in place",
    "drawing, 1 object: colour and place",
    "reconstruction: every colour and shape",
)


@pytest.mark.parametrize("name", SHARES)
def test_the_truth_gets_full_marks_and_blindness_none(results: dict[str, SuiteResult], name: str) -> None:
    assert results["Oracle"].scores[name].value == 1
    assert results["Blind"].scores[name].value == 0


def test_true_drawings_are_as_far_from_true_pictures_as_these_are_among_themselves(
    results: dict[str, SuiteResult],
) -> None:
    truth, blind = results["Oracle"].scores, results["Blind"].scores
    assert truth[FRECHET_FLOOR] == blind[FRECHET_FLOOR]
    assert truth[FRECHET].low < truth[FRECHET_FLOOR].high
    assert blind[FRECHET].low > truth[FRECHET_FLOOR].high


def test_without_features_or_with_few_drawings_no_distance_is_claimed() -> None:
    assert FRECHET not in evaluate_scenes(Blind(), 8, _thumbnails).scores
    assert FRECHET not in evaluate_scenes(Blind(), 24).scores


class Sees:
    """Says what the oracle says, and cannot draw."""

    def __init__(self) -> None:
        oracle = Oracle()
        self.caption, self.answer = oracle.caption, oracle.answer


def test_a_model_that_does_not_draw_is_scored_on_what_it_says(results: dict[str, SuiteResult]) -> None:
    said = evaluate_scenes(Sees(), SIZE).scores
    whole = results["Oracle"].scores
    assert said == {name: score for name, score in whole.items() if name.startswith(("caption", "questions"))}
