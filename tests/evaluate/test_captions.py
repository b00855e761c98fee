from __future__ import annotations

import numpy as np
import pytest

from tessera.data.worlds.scenes.captions import STYLES, canonical_caption, caption
from tessera.data.worlds.scenes.graph import Scene, random_scene
from tessera.errors import UserError
from tessera.evaluate.captions import (
    attribute_precision_recall,
    bleu4,
    caption_is_exact,
    cider_d,
    cider_scores,
    rouge_l,
    tokenize,
)

WORDS = ["a", "the", "red", "blue", "star", "circle", "square", "in", "on", "left", "top", "small", "striped"]


def _texts(count: int = 60, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Captions and one to four references each: near copies, unrelated ones, very short and very long ones."""
    rng = np.random.default_rng(seed)

    def sentence() -> list[str]:
        return list(rng.choice(WORDS, size=int(rng.integers(1, 25))))

    references = [[sentence() for _ in range(int(rng.integers(1, 5)))] for _ in range(count)]
    said = []
    for several in references:
        words = [word if rng.random() < 0.8 else str(rng.choice(WORDS)) for word in several[0]]
        said.append(words[: int(rng.integers(1, 30))] if rng.random() < 0.7 else sentence())
    return [" ".join(words) for words in said], [[" ".join(words) for words in several] for several in references]


def _reference_scores(said: list[str], references: list[list[str]]) -> dict[str, tuple[float, np.ndarray]]:
    """BLEU-4, ROUGE-L and CIDEr-D of pycocoevalcap: the whole set's and each caption's."""
    pytest.importorskip(
        "pycocoevalcap", reason="the reference caption scores are an extra: pip install tessera-vl[eval]"
    )
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truths = dict(enumerate(references))
    found = {index: [text] for index, text in enumerate(said)}
    bleu, each = Bleu(4).compute_score(truths, found, verbose=0)
    rouge, rouges = Rouge().compute_score(truths, found)
    cider, ciders = Cider().compute_score(truths, found)
    return {"bleu": (bleu[3], np.array(each[3])), "rouge": (rouge, rouges), "cider": (cider, ciders)}


def _split(said: list[str], references: list[list[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    return [text.split() for text in said], [[text.split() for text in several] for several in references]


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_pycocoevalcap(seed: int) -> None:
    texts = _texts(seed=seed)
    wanted, tokens = _reference_scores(*texts), _split(*texts)
    assert bleu4(*tokens).value == pytest.approx(wanted["bleu"][0], abs=1e-6)
    assert rouge_l(*tokens).value == pytest.approx(wanted["rouge"][0], abs=1e-6)
    assert cider_d(*tokens).value == pytest.approx(wanted["cider"][0], abs=1e-6)
    np.testing.assert_allclose(cider_scores(*tokens), wanted["cider"][1], atol=1e-6)


def test_scores_of_scene_captions_equal_pycocoevalcap() -> None:
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng) for _ in range(40)]
    said = [" ".join(tokenize(caption(scene, rng, "short"))) for scene in scenes]
    references = [[" ".join(tokenize(caption(scene, rng, style))) for style in STYLES] for scene in scenes]
    wanted, tokens = _reference_scores(said, references), _split(said, references)
    assert bleu4(*tokens).value == pytest.approx(wanted["bleu"][0], abs=1e-6)
    assert rouge_l(*tokens).value == pytest.approx(wanted["rouge"][0], abs=1e-6)
    assert cider_d(*tokens).value == pytest.approx(wanted["cider"][0], abs=1e-6)


@pytest.mark.parametrize(
    ("said", "references"),
    [
        ("", ["a red star"]),
        ("star", ["star"]),
        ("a red star", ["blue circles everywhere in the picture"]),
        ("a a a a a a", ["a star", "a red star"]),
    ],
)
def test_single_captions_at_the_edge_equal_pycocoevalcap(said: str, references: list[str]) -> None:
    others = _texts(5)
    texts = [said, *others[0]], [references, *others[1]]
    wanted, tokens = _reference_scores(*texts), _split(*texts)
    assert bleu4(tokens[0][:1], tokens[1][:1]).value == pytest.approx(wanted["bleu"][1][0], abs=1e-6)
    assert rouge_l(tokens[0][:1], tokens[1][:1]).value == pytest.approx(wanted["rouge"][1][0], abs=1e-6)
    assert cider_scores(*tokens)[0] == pytest.approx(wanted["cider"][1][0], abs=1e-6)


def test_a_copy_scores_best() -> None:
    rng = np.random.default_rng(2)
    tokens = [tokenize(canonical_caption(random_scene(rng))) for _ in range(10)]
    references = [[one] for one in tokens]
    assert bleu4(tokens, references).value == pytest.approx(1)
    assert rouge_l(tokens, references).value == pytest.approx(1)
    assert cider_d(tokens, references).value > 5


def test_intervals_hold_the_value() -> None:
    tokens = _split(*_texts(30))
    for score in (bleu4, rouge_l, cider_d):
        estimate = score(*tokens)
        assert estimate.low < estimate.value < estimate.high
        assert estimate.n == 30


def test_captions_without_references_are_refused() -> None:
    with pytest.raises(UserError, match="1 captions cannot be scored against 0"):
        bleu4([["a"]], [])
    with pytest.raises(UserError, match="no reference"):
        cider_d([["a"]], [[]])


def test_tokens_are_lower_case_words_without_punctuation() -> None:
    assert tokenize("A red Star, (left); don't touch: 2 semi-dry x's!") == [
        "a", "red", "star", "left", "don't", "touch", "2", "semi-dry", "x's",
    ]  # fmt: skip
    assert tokenize(" ... ") == []


def _scenes(count: int) -> list[Scene]:
    rng = np.random.default_rng(3)
    return [random_scene(rng, counts=(0.0, 1.0)) for _ in range(count)]


def test_true_captions_are_exact_and_wrong_ones_are_not() -> None:
    rng = np.random.default_rng(4)
    scenes = _scenes(20)
    for style in STYLES:
        assert all(caption_is_exact(caption(scene, rng, style), scene) for scene in scenes)
    scene = scenes[0]
    one = scene.objects[0]
    assert not caption_is_exact(f"a {one.colour} {one.shape}", scene)
    assert not caption_is_exact(canonical_caption(scene) + " and a red star and a blue star and a pink star", scene)
    assert not caption_is_exact("", scene)


def test_places_count_only_where_they_are_asked_for() -> None:
    scene = _scenes(1)[0]
    swapped = canonical_caption(Scene(scene.objects[::-1], "plain", "light", 0))
    a, b = scene.objects
    crossed = f"a {a.colour} {a.shape} at the {b.place} and a {b.colour} {b.shape} at the {a.place}"
    assert caption_is_exact(swapped, scene, ("colour", "shape", "place"))
    assert caption_is_exact(crossed, scene)
    if (a.colour, a.shape) != (b.colour, b.shape):
        assert not caption_is_exact(crossed, scene, ("colour", "shape", "place"))


def test_precision_and_recall_count_objects() -> None:
    scenes = _scenes(40)
    first_only = [f"a {scene.objects[0].colour} {scene.objects[0].shape}" for scene in scenes]
    precision, recall = attribute_precision_recall(first_only, scenes)
    assert (precision.value, recall.value) == (1, 0.5)
    precision, recall = attribute_precision_recall([""] * 40, scenes)
    assert (precision.value, recall.value) == (0, 0)
