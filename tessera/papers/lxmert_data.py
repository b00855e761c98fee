"""What LXMERT reads: a sentence and the regions of a picture, with words, regions and sentences hidden or exchanged.

Legend: B samples, L words, K regions, F width of their features, P pictures of a sample (1, or 2 in statements), A
answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.data.answers import AnswerTable
from tessera.data.loader import Loader, Samples
from tessera.data.mixture import Mixture
from tessera.data.proposals import propose
from tessera.data.regions import RegionBatch, Regions, collate_regions, pad, unnamed
from tessera.data.sample import Image, Sample, Text
from tessera.data.sentences import Sentences
from tessera.data.sequence import IGNORED
from tessera.data.source import Source
from tessera.data.worlds.scenes.graph import Scene
from tessera.data.worlds.scenes.regions import scene_regions
from tessera.errors import BadSample
from tessera.evaluate.vqa import likeliest, scored
from tessera.models.fusion import FusionForPairs
from tessera.objectives.answers import draw_answer
from tessera.objectives.masking import NOT_CHOSEN, hide_regions, mask_regions, mask_words

Detector = Callable[[Sample, Image], Regions]
Encoder = Callable[[Sequence[Image], Sequence[Regions]], list[Tensor]]
_TRIES = 20  # sentences that are drawn until one is of another picture


@dataclass
class Found:
    """The stand-in for a detector: what a scene's world knows, else what stands out in the picture; remembered."""

    known: dict[str, Regions] = field(default_factory=dict)

    def __call__(self, sample: Sample, image: Image) -> Regions:
        """The regions of a picture of `sample`. Raises BadSample where it cannot be read."""
        if image.key in self.known:
            return self.known[image.key]
        scene = sample.meta.get("scene")
        if isinstance(scene, Scene) and image is sample.images[0]:
            found = scene_regions(scene)
        else:
            found = unnamed(propose(np.asarray(image.pil())))
        if image.key is not None:
            self.known[image.key] = found
        return found


@dataclass(frozen=True)
class Grounded:
    """A sample as LXMERT sees it: a sentence, and the scores of its answers where it is a question."""

    sentence: str
    scores: Mapping[str, float]


def grounded(sample: Sample) -> Grounded:
    """The sentence of a pair, a question or a statement, and its answers.

    `meta["sentence"]` is the sentence where the sample only asks whether it is true, `meta["answers"]` are the scores
    where there are several answers.

    Raises:
        BadSample: there is neither a caption nor a question.
    """
    texts = [segment for segment in sample.segments if isinstance(segment, Text)]
    if not texts or not sample.images:
        raise BadSample("the sample is no sentence about a picture")
    said = str(sample.meta.get("sentence", texts[0].text))
    if len(texts) == 1:
        return Grounded(said, {})
    return Grounded(said, sample.meta.get("answers") or {texts[-1].text: 1.0})


@dataclass(frozen=True)
class Batch:
    """Sentences with the regions of their pictures; of two pictures of a sample, one after the other.

    input_ids, attention_mask int64 [B, L]; regions of [B * P] pictures, and as they were found; images: the pictures.
    In pre-training: words int64 [B, L], labels of hidden words; fates int8 and draws float [B, K], what becomes of
    regions; matched int64 [B]; answers int64 [B]. In fine-tuning: scores float [B, A], or truths int64 [B].
    """

    input_ids: Tensor
    attention_mask: Tensor
    regions: RegionBatch
    found: list[Regions]
    images: list[Image]
    sample_ids: list[str]
    words: Tensor | None = None
    fates: Tensor | None = None
    draws: Tensor | None = None
    matched: Tensor | None = None
    answers: Tensor | None = None
    scores: Tensor | None = None
    truths: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same with its tensors on `device`."""
        kinds = Tensor | RegionBatch
        moved: dict[str, Any] = {
            one.name: value.to(device) for one in fields(self) if isinstance(value := getattr(self, one.name), kinds)
        }
        return replace(self, **moved)

    def features(self, encoder: Encoder | None) -> Tensor:
        """Features [B * P, K, F]: those of the files, else what `encoder` sees."""
        if self.regions.features is not None:
            return self.regions.features
        assert encoder is not None
        return pad(encoder(self.images, self.found)).to(self.regions.boxes)

    def shown(self, features: Tensor) -> Tensor:
        """Features with the regions hidden that pre-training hides."""
        assert self.fates is not None and self.draws is not None
        return hide_regions(features, self.fates, self.draws, self.regions.mask)

    @property
    def masked(self) -> Tensor:
        """bool [B, K]: regions that pre-training asks for."""
        assert self.fates is not None
        return self.fates != NOT_CHOSEN


@dataclass(frozen=True)
class _Item:
    """One sample, read: its marked words, and what a batch makes tensors of."""

    ids: np.ndarray
    regions: tuple[Regions, ...]
    images: tuple[Image, ...]
    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Chances:
    """Shares of words and regions that are hidden, and of sentences that are exchanged for another picture's."""

    words: float = 0.15
    regions: float = 0.15
    mismatched: float = 0.5


@dataclass
class Streams:
    """Loaders of pre-training and fine-tuning over weighted sources.

    Args:
        detector: finds the regions of a picture of a sample.
    """

    sentences: Sentences
    table: AnswerTable
    detector: Detector
    chances: Chances = Chances()
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    workers: int = 0

    def pretraining(self, parts: Sequence[tuple[Source, float]], batch: int) -> Loader[Batch]:
        """Sentences and regions with something hidden in both, `batch` of all processes together."""
        mixture = Mixture(parts)

        def prepare(sample: Sample, rng: np.random.Generator) -> _Item:
            return self.hidden(sample, mixture, rng)

        return self._loader(mixture, prepare, batch)

    def questions(self, parts: Sequence[tuple[Source, float]], batch: int) -> Loader[Batch]:
        """Questions with the scores of all answers."""
        return self._loader(Mixture(parts), lambda sample, rng: self.asked(sample), batch)

    def statements(self, parts: Sequence[tuple[Source, float]], batch: int) -> Loader[Batch]:
        """Statements about two pictures each."""
        return self._loader(Mixture(parts), lambda sample, rng: self.stated(sample), batch)

    def hidden(self, sample: Sample, mixture: Mixture, rng: np.random.Generator) -> _Item:
        """A sample of pre-training. With a chance the sentence is one of another picture; it then has no answer."""
        said = grounded(sample)
        matched = rng.random() >= self.chances.mismatched
        if not matched:
            said = replace(self._stranger(sample, mixture, rng), scores={})
        image = sample.images[0]
        regions = self.detector(sample, image)
        answer = draw_answer(self._places(said.scores), rng)
        words = self.sentences.words(said.sentence)
        shown, labels = mask_words(words, self.sentences.mask_id, self.sentences.vocabulary, rng, self.chances.words)
        fates, draws = mask_regions(len(regions), rng, self.chances.regions)
        asked = {
            "words": self.sentences.marked(labels, IGNORED, IGNORED), "fates": fates, "draws": draws,
            "matched": int(matched), "answers": IGNORED if answer is None else answer,
        }  # fmt: skip
        return _Item(self.sentences.marked(shown), (regions,), (image,), sample.id, asked)

    def asked(self, sample: Sample) -> _Item:
        """A question of fine-tuning. Where the table has none of its answers, all scores are 0."""
        said = grounded(sample)
        scores = np.zeros(len(self.table), np.float32)
        for place, score in self._places(said.scores).items():
            scores[place] = score
        return self.read(sample, said.sentence, scores=scores)

    def stated(self, sample: Sample) -> _Item:
        """A statement about two pictures. Raises BadSample where there are not two."""
        if len(sample.images) != 2:
            raise BadSample(f"a statement is about two pictures, this one about {len(sample.images)}")
        return self.read(sample, grounded(sample).sentence, truths=int(sample.meta["label"]))

    def read(self, sample: Sample, sentence: str, **asked: Any) -> _Item:
        """A sample with nothing hidden."""
        regions = tuple(self.detector(sample, image) for image in sample.images)
        ids = self.sentences.marked(self.sentences.words(sentence))
        return _Item(ids, regions, sample.images, sample.id, asked)

    def collate(self, items: Sequence[_Item]) -> Batch:
        """A batch of samples that were read alike."""
        ids, mask = self.sentences.collate([item.ids for item in items])
        found = [one for item in items for one in item.regions]
        asked: dict[str, Tensor] = {}
        for name in items[0].fields:
            values = [item.fields[name] for item in items]
            asked[name] = _together(name, values)
        return Batch(
            ids, mask, collate_regions(found), found, [image for item in items for image in item.images],
            [item.name for item in items], **asked,
        )  # fmt: skip

    def _places(self, scores: Mapping[str, float]) -> dict[int, float]:
        """Scores by place in the table, where it has the answer; of answers that are spelt alike the highest."""
        found: dict[int, float] = {}
        for answer, score in scores.items():
            place = self.table.place(answer)
            if place is not None:
                found[place] = max(score, found.get(place, 0.0))
        return found

    def _stranger(self, sample: Sample, mixture: Mixture, rng: np.random.Generator) -> Grounded:
        """The sentence of a sample about another picture. Raises BadSample where none is found."""
        for _ in range(_TRIES):
            source = mixture.sources[int(rng.choice(len(mixture.sources), p=mixture.shares))]
            other = source[int(rng.integers(len(source)))]
            if other.images and other.images[0].key != sample.images[0].key:
                return grounded(other)
        raise BadSample("no sentence about another picture was found; pre-training needs several pictures")

    def _loader(
        self, mixture: Mixture, prepare: Callable[[Sample, np.random.Generator], _Item], batch: int
    ) -> Loader[Batch]:
        return Loader(
            mixture, Samples(prepare, self.collate, batch), seed=self.seed, rank=self.rank,
            world_size=self.world_size, workers=self.workers,
        )  # fmt: skip


def _together(name: str, values: list[Any]) -> Tensor:
    """One tensor of a field; rows of different lengths end in what asks for nothing."""
    if not isinstance(values[0], np.ndarray):
        return torch.tensor(values)
    ends = {"words": float(IGNORED), "fates": float(NOT_CHOSEN)}
    rows = [torch.from_numpy(value) for value in values]
    return torch.nn.utils.rnn.pad_sequence(rows, True, ends.get(name, 0.0))


def predict(model: Any, batch: Batch, features: Tensor) -> Tensor:
    """Logits of a fine-tuned model, [B, A] or for statements [B, 2]."""
    regions, pairs = batch.regions, isinstance(model, FusionForPairs)
    seen = [one.unflatten(0, (-1, 2)) if pairs else one for one in (features, regions.boxes, regions.mask)]
    return model(
        batch.input_ids, seen[0], seen[1], attention_mask=batch.attention_mask, visual_attention_mask=seen[2]
    ).logits


def answer_scores(model: Any, streams: Streams, samples: Sequence[Sample], encoder: Encoder | None) -> list[float]:
    """The score of the likeliest answer to each sample, in [0, 1]: of a question's answers, or whether a statement was
    judged rightly. An answer that the table does not have can never be given: 0."""

    def judge(items: list[_Item]) -> Tensor:
        batch = streams.collate(items).to(model.device)
        truths = batch.truths if batch.scores is None else batch.scores
        assert truths is not None
        return likeliest(predict(model, batch, batch.features(encoder)), truths)

    model.eval()
    return scored(samples, streams.stated if isinstance(model, FusionForPairs) else streams.asked, judge)
