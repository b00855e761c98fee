"""Suite `scenes`: what a model says, answers and draws of held-out combinations, judged by exact ground truth.

Captions are read by the grammar, drawings and reconstructions by the scene reader; no trained model judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image as PIL

from tessera.data.worlds.scenes.captions import Style, canonical_caption, caption
from tessera.data.worlds.scenes.draw import draw
from tessera.data.worlds.scenes.graph import Scene, random_scene
from tessera.data.worlds.scenes.mentions import mentioned_objects
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.evaluate.captions import bleu4, cider_d, rouge_l, tokenize
from tessera.evaluate.frechet import FEWEST, frechet_score
from tessera.evaluate.intervals import Estimate, exact_binomial
from tessera.evaluate.scene_match import matches
from tessera.evaluate.scene_reader import read_scene
from tessera.evaluate.vqa import accuracy_by_type

SEED = 20_000  # of the pictures and questions of this suite, apart from every training and held-out stream

FRECHET = "drawing: Fréchet distance to true pictures"
FRECHET_FLOOR = "drawing: Fréchet distance, true pictures among themselves"

Features = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Pictures uint8 [64, 64, 3] to features [n, d] by an encoder that judges no model of its own."""


class Answers(Protocol):
    """A model that answers a question about each picture."""

    def answer(self, images: list[Any], questions: list[str]) -> list[str]: ...


class Sees(Answers, Protocol):
    """What the suite asks of any model."""

    def caption(self, images: list[Any]) -> list[str]: ...


@runtime_checkable
class SeesAndDraws(Sees, Protocol):
    """And of one that draws."""

    def draw(self, texts: list[str], *, seed: int = 0) -> list[PIL.Image]: ...

    def reconstruct(self, images: Sequence[Any], *, seed: int = 0) -> list[PIL.Image]: ...


@dataclass
class SuiteResult:
    """Scores by name, and what they were taken from: for reports."""

    scores: dict[str, Estimate] = field(default_factory=dict)
    captions: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    drawings: list[dict[str, Any]] = field(default_factory=list)
    reconstructions: list[dict[str, Any]] = field(default_factory=list)


def heldout_scenes(count: int, objects: int | tuple[int, ...], stream: int) -> list[Scene]:
    """Held-out scenes with so many objects each, or in turn so many; every triple of colour, shape, place is held
    out."""
    numbers = (objects,) if isinstance(objects, int) else objects
    return [
        random_scene(
            np.random.default_rng((SEED, stream, index)), "heldout",
            tuple(float(n + 1 == numbers[index % len(numbers)]) for n in range(4)),
        )
        for index in range(count)
    ]  # fmt: skip


def evaluate_scenes(model: Sees, size: int = 200, features: Features | None = None) -> SuiteResult:
    """All parts of the suite that the model can do: captions and questions, and drawings where it draws.

    Args:
        size: pictures with one or two objects that are captioned; the other parts are in proportion.
        features: what the Fréchet distance of the drawings is taken on; None, or fewer than 20 drawings, leaves
            it out.
    """
    result = SuiteResult()
    _captions(model, result, heldout_scenes(size, (1, 2), 0), "caption, 1-2 objects")
    _captions(model, result, heldout_scenes(size // 2, (3, 4), 1), "caption, 3-4 objects")
    _answers(model, result, 3 * size)
    if not isinstance(model, SeesAndDraws):
        return result
    for number in (1, 2):
        _drawings(model, result, heldout_scenes(size // 2, number, 1 + number), number)
    if features is not None and len(result.drawings) >= FEWEST:
        _distance(result, features)
    _reconstructions(model, result, heldout_scenes(size // 2, (1, 2, 3, 4), 4))
    return result


def _captions(model: Sees, result: SuiteResult, scenes: list[Scene], name: str) -> None:
    pictures = [draw(scene) for scene in scenes]
    said = model.caption(pictures)
    right = [matches(mentioned_objects(text), scene) for text, scene in zip(said, scenes, strict=True)]
    result.scores[f"{name}: every colour and shape"] = exact_binomial(sum(right), len(right))
    references = [[tokenize(text) for text in _references(scene)] for scene in scenes]
    tokens = [tokenize(text) for text in said]
    for metric, function in (("BLEU-4", bleu4), ("ROUGE-L", rouge_l), ("CIDEr-D", cider_d)):
        result.scores[f"{name}: {metric}"] = function(tokens, references)
    result.captions += [
        {"picture": picture, "truth": canonical_caption(scene), "said": text, "right": ok}
        for picture, scene, text, ok in zip(pictures, scenes, said, right, strict=True)
    ]


def _references(scene: Scene) -> list[str]:
    """Five true sentences of one scene."""
    rng = np.random.default_rng((SEED, scene.seed))
    styles: tuple[Style, ...] = ("short", "short", "dense", "relational")
    return [canonical_caption(scene), *(caption(scene, rng, style) for style in styles)]


def _answers(model: Sees, result: SuiteResult, count: int) -> None:
    source = ScenesWorld(seed=SEED).source("questions", "heldout")
    samples = [source[index] for index in range(count)]
    asked = [sample.segments[1].text for sample in samples]  # type: ignore[union-attr]
    said = model.answer([sample.images[0].pil() for sample in samples], asked)
    right = [text.strip().lower().rstrip(".") for text in said]
    wanted = [str(sample.meta["answer"]) for sample in samples]
    kinds = [str(sample.meta["type"]) for sample in samples]
    for kind, row in accuracy_by_type(right, wanted, kinds).items():
        result.scores[f"questions, {kind}"] = row.accuracy
        result.scores[f"questions, {kind}: majority answer"] = row.majority
    result.answers += [
        {"picture": np.asarray(sample.images[0].pil()), "question": question, "truth": truth, "said": text}
        for sample, question, truth, text in zip(samples, asked, wanted, right, strict=True)
    ]


def _drawings(model: SeesAndDraws, result: SuiteResult, scenes: list[Scene], number: int) -> None:
    prompts = [canonical_caption(scene) for scene in scenes]
    drawn = [np.asarray(picture) for picture in model.draw(prompts, seed=0)]
    read = [read_scene(picture) for picture in drawn]
    right = [matches(things, scene) for things, scene in zip(read, scenes, strict=True)]
    noun = "object" if number == 1 else "objects"
    result.scores[f"drawing, {number} {noun}: all right"] = exact_binomial(sum(right), len(right))
    for told, fields in (("and in place", ("colour", "shape", "place")), ("colour and place", ("colour", "place"))):
        good = sum(matches(things, scene, fields) for things, scene in zip(read, scenes, strict=True))
        result.scores[f"drawing, {number} {noun}: {told}"] = exact_binomial(good, len(scenes))
    result.drawings += [
        {"prompt": prompt, "picture": picture, "read": _described(things), "right": ok}
        for prompt, picture, things, ok in zip(prompts, drawn, read, right, strict=True)
    ]


def _distance(result: SuiteResult, features: Features) -> None:
    """Fréchet distance of the drawings to true pictures of other held-out scenes with as many objects."""
    true = [draw(scene) for scene in heldout_scenes(2 * len(result.drawings), (1, 2), 5)]
    score = frechet_score(features(true), features([row["picture"] for row in result.drawings]))
    result.scores[FRECHET], result.scores[FRECHET_FLOOR] = score.distance, score.floor


def _reconstructions(model: SeesAndDraws, result: SuiteResult, scenes: list[Scene]) -> None:
    pictures = [draw(scene) for scene in scenes]
    again = [np.asarray(picture) for picture in model.reconstruct(pictures, seed=0)]
    right = [matches(read_scene(picture), scene) for picture, scene in zip(again, scenes, strict=True)]
    result.scores["reconstruction: every colour and shape"] = exact_binomial(sum(right), len(right))
    result.reconstructions += [
        {"picture": picture, "again": other, "right": ok}
        for picture, other, ok in zip(pictures, again, right, strict=True)
    ]


def _described(things: Sequence[Any]) -> str:
    return ", ".join(f"{thing.size} {thing.colour} {thing.shape} {thing.place}" for thing in things) or "nothing"
