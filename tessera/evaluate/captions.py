"""BLEU-4, ROUGE-L and CIDEr-D as the COCO caption evaluation computes them, and captions against a scene.

Equal to `pycocoevalcap` 1.2 on the same tokens. METEOR and SPICE need Java and are not provided.
Legend: N captions; `candidates` are token lists [N]; `references` are lists [N] of one or more token lists.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from tessera.data.worlds.scenes.graph import Scene
from tessera.data.worlds.scenes.mentions import mentioned_objects
from tessera.errors import UserError
from tessera.evaluate.intervals import Estimate, bootstrap, bootstrap_mean
from tessera.evaluate.scene_match import agreement, matches

Tokens = Sequence[str]
_ORDER = 4  # longest n-gram of BLEU and CIDEr
_BETA = 1.2  # weight of recall in ROUGE-L
_SIGMA = 6.0  # words; width of CIDEr-D's length penalty
_WORD = re.compile(r"[\w]+(?:[-'’][\w]+)*")


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation; hyphens and apostrophes inside a word stay.

    Simpler than the Java PTB tokenizer of the COCO evaluation, which for one splits "don't" into "do n't":
    scores of texts with such words differ a little from published ones.
    """
    return _WORD.findall(text.lower())


def _ngrams(tokens: Tokens) -> list[Counter[tuple[str, ...]]]:
    """Counts of the n-grams of each length 1..4."""
    return [Counter(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, _ORDER + 1)]


def _check(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    if len(candidates) != len(references) or not candidates:
        raise UserError(f"{len(candidates)} captions cannot be scored against {len(references)} sets of references")
    if not all(references):
        raise UserError("a caption has no reference; each needs at least one")


def _bleu_parts(candidate: Tokens, references: Sequence[Tokens]) -> list[int]:
    """Length, closest reference length, then matched and all n-grams for n = 1..4."""
    length = len(candidate)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    best: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(_ORDER)]
    for reference in references:
        best = [high | counts for high, counts in zip(best, _ngrams(reference), strict=True)]
    matched = [(mine & high).total() for mine, high in zip(_ngrams(candidate), best, strict=True)]
    return [length, closest, *matched, *(max(0, length - n) for n in range(_ORDER))]


def _bleu(parts: np.ndarray) -> np.ndarray:
    """BLEU-4 from summed parts float [10, ...]; the tiny terms are the reference implementation's."""
    length, closest, matched, all_of = parts[0], parts[1], parts[2 : 2 + _ORDER], parts[2 + _ORDER :]
    precision = np.prod((matched + 1e-15) / (all_of + 1e-9), axis=0) ** (1 / _ORDER)
    ratio = (length + 1e-15) / (closest + 1e-9)
    return precision * np.exp(np.minimum(0, 1 - 1 / ratio))


def bleu4(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Estimate:
    """Corpus BLEU-4 in [0, 1] with the closest reference length; the interval resamples captions."""
    _check(candidates, references)
    parts = np.array([_bleu_parts(*pair) for pair in zip(candidates, references, strict=True)], dtype=np.float64)

    def statistic(*columns: np.ndarray, axis: int) -> np.ndarray:
        return _bleu(np.stack([column.sum(axis=axis) for column in columns]))

    return bootstrap(list(parts.T), statistic)


def _common(left: Tokens, right: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for at, other in enumerate(right, start=1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]


def _rouge(candidate: Tokens, references: Sequence[Tokens]) -> float:
    # The reference splits a string at spaces, where an empty caption is one empty word.
    said = candidate or [""]
    truths = [reference or [""] for reference in references]
    common = [_common(said, truth) for truth in truths]
    precision = max(common) / len(said)
    recall = max(length / len(truth) for length, truth in zip(common, truths, strict=True))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Estimate:
    """Mean ROUGE-L in [0, 1]."""
    _check(candidates, references)
    return bootstrap_mean([_rouge(*pair) for pair in zip(candidates, references, strict=True)])


def cider_scores(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """CIDEr-D of each caption, float [N], about 0 to 10; document frequencies come from these references."""
    _check(candidates, references)
    counted = [[_ngrams(reference) for reference in several] for several in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for several in counted:
        frequency.update({gram for counts in several for one in counts for gram in one})
    images = math.log(len(references))

    def weigh(counts: list[Counter[tuple[str, ...]]]) -> list[dict[tuple[str, ...], float]]:
        return [{gram: c * (images - math.log(max(1, frequency[gram]))) for gram, c in one.items()} for one in counts]

    scores = []
    for candidate, several in zip(candidates, counted, strict=True):
        counts = _ngrams(candidate)
        mine = weigh(counts)
        alike = [_cider(mine, counts[1].total(), weigh(other), other[1].total()) for other in several]
        scores.append(10 * sum(alike) / len(alike))
    return np.array(scores)


def _norm(vector: dict[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(weight * weight for weight in vector.values()))


def _cider(
    mine: list[dict[tuple[str, ...], float]],
    pairs: int,
    theirs: list[dict[tuple[str, ...], float]],
    other_pairs: int,
) -> float:
    """Mean clipped cosine of the n-gram vectors times the length penalty (lengths in word pairs)."""
    total = 0.0
    for one, other in zip(mine, theirs, strict=True):
        product = sum(min(weight, other[gram]) * other[gram] for gram, weight in one.items() if gram in other)
        norms = _norm(one) * _norm(other)
        total += product / norms if norms else product
    return math.exp(-((pairs - other_pairs) ** 2) / (2 * _SIGMA**2)) * total / _ORDER


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Estimate:
    """Mean CIDEr-D, about 0 to 10; publications print it times 100."""
    return bootstrap_mean(cider_scores(candidates, references))


def caption_is_exact(text: str, scene: Scene, fields: Sequence[str] = ("colour", "shape")) -> bool:
    """Whether a caption names every object of the scene, and no other, each with the right `fields`.

    What a caption does not say of an object (its place, say) counts as right.
    """
    return matches(mentioned_objects(text), scene, fields)


def attribute_precision_recall(
    captions: Iterable[str], scenes: Iterable[Scene], fields: Sequence[str] = ("colour", "shape")
) -> tuple[Estimate, Estimate]:
    """Of the objects named, the share that is there; of the objects there, the share that is named.

    The intervals resample captions.
    """
    pairs = [agreement(mentioned_objects(text), s, fields) for text, s in zip(captions, scenes, strict=True)]
    right, named, present = np.array(pairs, dtype=np.float64).T

    def share(top: np.ndarray, bottom: np.ndarray, axis: int) -> np.ndarray:
        return top.sum(axis=axis) / np.maximum(bottom.sum(axis=axis), 1)

    return bootstrap((right, named), share), bootstrap((right, present), share)
