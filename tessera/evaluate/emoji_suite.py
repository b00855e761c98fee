"""Suite `emoji`: pictures drawn by people, none of whose variants was in training, captioned, drawn and named.

Naming is retrieval: the model says how likely each of 100 names is as its caption of a picture, and the names are
ranked by how much the picture raises that likelihood above its average over all pictures shown. Without the second
part, names that are likely of any picture (short ones, "flag of ...") would head every list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image as PIL
from torch import Tensor

from tessera.data.sample import Sample
from tessera.data.sequence import SequenceBuilder
from tessera.data.tasks import CAPTION_REQUESTS
from tessera.data.worlds.emoji import EmojiWorld
from tessera.evaluate.intervals import Estimate, exact_binomial
from tessera.evaluate.likelihood import log_likelihoods
from tessera.evaluate.retrieval import ranks_of_own
from tessera.models.vlgpt import VLGPTForConditionalGeneration

NAMES = 100  # that a picture's own is sought among, or all where there are fewer
FIRST = 10
SHOWN = 12
RECALL = f"emoji: its own among the first {FIRST} names"
CHANCE = f"{RECALL}: chance"
Likely = Callable[[list[PIL.Image], str, list[str]], np.ndarray]


class NamesAndDraws(Protocol):
    """What the suite asks of a model."""

    model: VLGPTForConditionalGeneration
    builder: SequenceBuilder

    def encode(self, images: Sequence[Any]) -> Tensor: ...

    def caption(self, images: list[Any]) -> list[str]: ...

    def draw(self, texts: list[str], *, seed: int = 0) -> list[PIL.Image]: ...


@dataclass
class EmojiResult:
    """Scores by name, and the first samples as they came: for reports."""

    scores: dict[str, Estimate] = field(default_factory=dict)
    captions: list[dict[str, Any]] = field(default_factory=list)
    drawings: list[dict[str, Any]] = field(default_factory=list)


def heldout_bases(world: EmojiWorld) -> list[Sample]:
    """One held-out pair for each base emoji, in the order of their code points: the base itself where the font has
    it, else its first variant."""
    found: dict[str, Sample] = {}
    for sample in world.source("pairs", "heldout"):  # type: ignore[attr-defined]
        base = str(sample.meta["base"])
        plain = str(sample.meta["emoji"]).replace("\ufe0f", "") == base
        if plain or base not in found:
            found[base] = sample
    return list(found.values())


def spread(count: int, among: int) -> list[int]:
    """`count` indices below `among`, evenly spaced from 0 on; all where there are fewer."""
    count = min(count, among)
    return [index * among // count for index in range(count)]


def recall_of_names(likely: Likely, size: int = 200) -> EmojiResult:
    """Recall of names with its chance; without what a model says and draws.

    Args:
        likely: how likely each of some names is as the answer to a question about each of M pictures, [M, names].
        size: as of `evaluate_emoji`.

    Raises:
        UserError: no colour emoji font is on this machine.
    """
    pictures, asked, names = _asked(size)
    raised = likely(pictures, CAPTION_REQUESTS[0], names)
    raised = raised - np.logaddexp.reduce(raised, axis=0)
    hits = ranks_of_own(raised, asked) < FIRST
    chance = min(1.0, FIRST / len(names))
    return EmojiResult(
        {RECALL: exact_binomial(int(hits.sum()), len(hits)), CHANCE: Estimate(chance, chance, chance, len(names))}
    )


def _asked(size: int) -> tuple[list[PIL.Image], list[int], list[str]]:
    """Pictures, the place of each among the names, and the names."""
    samples = heldout_bases(EmojiWorld())
    samples = [samples[index] for index in spread(NAMES, len(samples))]
    asked = spread(max(1, size // 2), len(samples))
    return [samples[index].images[0].pil() for index in asked], asked, [str(one.meta["names"][0]) for one in samples]


def evaluate_emoji(model: NamesAndDraws, size: int = 200) -> EmojiResult:
    """Recall of names with its chance, and what the model says and draws of the first emoji.

    Args:
        size: twice the number of pictures that are named; the names they are sought among stay 100.

    Raises:
        UserError: no colour emoji font is on this machine.
    """
    pictures, asked, names = _asked(size)
    shown = spread(SHOWN, len(asked))
    faces, truths = [pictures[place] for place in shown], [names[asked[place]] for place in shown]
    result = recall_of_names(
        lambda some, question, answers: log_likelihoods(
            model.model, model.builder, model.encode(some), question, answers
        ),
        size,
    )
    result.captions = [
        {"picture": picture, "truth": truth, "said": said}
        for picture, truth, said in zip(faces, truths, model.caption(faces), strict=True)
    ]
    result.drawings = [
        {"prompt": truth, "picture": picture} for truth, picture in zip(truths, model.draw(truths), strict=True)
    ]
    return result
