"""What the study of VL-GPT measures on held-out pictures: conditions, captions, drawings. One score a picture.

Legend: n pictures; x_v [n, N, d]; image condition e_v [n, Q, Dv] of the frozen painter and its estimate z_v; text
condition e_t [n, T, Dt] and z_t.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.data.packing import Batch, collate_rows
from tessera.data.sample import Image, Sample, Text
from tessera.data.sequence import IGNORED, SequenceBuilder
from tessera.data.source import Source
from tessera.data.worlds.scenes.captions import STYLES, caption
from tessera.data.worlds.scenes.mentions import mentioned_objects
from tessera.evaluate.captions import cider_scores, tokenize
from tessera.evaluate.readout import linear_readout, ridge
from tessera.evaluate.retrieval import ranks
from tessera.evaluate.scene_match import agreement
from tessera.generate.interleaved import generate
from tessera.generate.reply import Prompt
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.zoo.foundation import Foundation

ROWS = 64  # pictures or sequences that are read together
LONGEST = 64  # tokens of a caption
HEAD_DECAY = 1e-3  # of the regression head that is fitted afterwards
Items = dict[str, list[float]]


def picture_first(sample: Sample, rng: np.random.Generator | None = None) -> Sample:
    """A pair as its picture, which is only read, and then its caption."""
    return Sample((replace(sample.images[0], learned=False), Text(sample.text)), id=sample.id, meta=sample.meta)


def _parts(number: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, number, ROWS))


@dataclass(frozen=True)
class Shown:
    """The first captioned pictures of a source, with the conditions that the frozen painter has of them."""

    samples: list[Sample]
    foundation: Foundation

    @classmethod
    def first(cls, source: Source, number: int, foundation: Foundation) -> Shown:
        """The first `number` samples."""
        return cls([source[index] for index in range(number)], foundation)

    @property
    def images(self) -> list[Image]:
        """The pictures."""
        return [sample.images[0] for sample in self.samples]

    @property
    def sentences(self) -> list[str]:
        """For each picture the one sentence that says all of it, whose states are e_t."""
        return [str(sample.meta["canonical"]) for sample in self.samples]

    @cached_property
    def image_condition(self) -> Tensor:
        """e_v [n, Q, Dv], on the CPU."""
        return torch.cat([self.foundation.image(self.images[part]).cpu() for part in _parts(len(self.samples))])

    @cached_property
    def text_condition(self) -> Tensor:
        """e_t [n, T, Dt], on the CPU."""
        return torch.cat([self.foundation.text(self.sentences[part]).cpu() for part in _parts(len(self.samples))])


@dataclass(frozen=True)
class Subject:
    """A trained model that is measured, and how sequences are built for it.

    Args:
        patches: pictures to the patch features of its frozen vision encoder.
    """

    model: VLGPTForConditionalGeneration
    patches: Any
    builder: SequenceBuilder
    tokenizer: Any

    @torch.no_grad()
    def embeds(self, images: Sequence[Image]) -> Tensor:
        """x_v [n, N, d] as the language model reads it, on the CPU."""
        tokenizer = self.model.image_tokenizer
        found = [tokenizer.encode(self.patches(images[part]).to(self.model.device)) for part in _parts(len(images))]
        return self.model.scale_embeds(torch.cat(found)).float().cpu()

    def hidden(self, samples: Sequence[Sample], embeds: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """Sequences of one picture each and their last hidden states [b, L, d], ROWS of them at a time."""
        sequences = [self.builder.build(sample) for sample in samples]
        for part in _parts(len(sequences)):
            rows = [[one] for one in sequences[part]]
            batch = collate_rows(rows, max(len(row[0]) for row in rows), self.tokenizer.pad_token_id or 0)
            batch = batch.to(self.model.device)
            shown = embeds[part].to(self.model.device)
            output = self.model(
                batch.input_ids, position_ids=batch.position_ids, segment_ids=batch.segment_ids, image_embeds=shown
            )
            assert output.hidden is not None
            yield batch, output.hidden


def centred_cosine(estimate: Tensor, target: Tensor, mean: Tensor) -> list[float]:
    """Cosine between `estimate` and `target`, [n, ...] each, once `mean` [...] is taken from both.

    A code that is the same for every picture is in the mean, and counts for nothing.
    """
    left, right = ((side.float() - mean).flatten(1) for side in (estimate, target))
    return F.cosine_similarity(left, right).tolist()


def found_first(estimate: Tensor, target: Tensor, mean: Tensor) -> list[float]:
    """1 where an estimate's own target is the nearest of all n by centred cosine, else 0."""
    left, right = ((side.float() - mean).flatten(1).numpy() for side in (estimate, target))
    return (ranks(left, right) < 1).astype(float).tolist()


@torch.no_grad()
def conditions(subject: Subject, fitted: Shown, unseen: Shown) -> Items:
    """How much of e_v and e_t the image tokenizer keeps, for the pictures of `unseen`.

    By the detokenizer, where the target was one that it was trained on; and, for e_v, by a linear map from x_v,
    which is fitted to the pictures of `fitted` alike for every tokenizer.
    """
    tokenizer = subject.model.image_tokenizer
    held = subject.embeds(unseen.images)
    estimated = subject.model.decode_images(held.to(subject.model.device))
    mean = fitted.image_condition.mean(0)
    items: Items = {}
    if tokenizer.config.image_weight:
        items["e_v cosine, detokenizer"] = centred_cosine(estimated.image.cpu(), unseen.image_condition, mean)
    if tokenizer.config.text_weight:
        text = (estimated.text.cpu(), unseen.text_condition, fitted.text_condition.mean(0))
        items["e_t cosine, detokenizer"] = centred_cosine(*text)
    known = subject.embeds(fitted.images).flatten(1)
    read = linear_readout(known, fitted.image_condition.flatten(1), held.flatten(1)).view(unseen.image_condition.shape)
    items["e_v cosine, linear readout"] = centred_cosine(read, unseen.image_condition, mean)
    items["e_v recall@1, linear readout"] = found_first(read, unseen.image_condition, mean)
    return items


@torch.no_grad()
def caption_losses(subject: Subject, shown: Shown) -> list[float]:
    """Cross-entropy in nats a token of each true caption after its picture."""
    embeds = subject.embeds(shown.images)
    losses: list[float] = []
    for batch, hidden in subject.hidden([picture_first(sample) for sample in shown.samples], embeds):
        words = batch.labels[:, 1:]
        logits = subject.model.logits(hidden[:, :-1]).float()
        each = F.cross_entropy(logits.transpose(1, 2), words, ignore_index=IGNORED, reduction="none")
        losses += (each.sum(1) / (words != IGNORED).sum(1)).tolist()
    return losses


def captions(subject: Subject, shown: Shown) -> list[str]:
    """What the model says of each picture, the likeliest word at a time."""
    embeds = subject.embeds(shown.images).to(subject.model.device)
    prompts = [
        Prompt(subject.builder.prompt((replace(image, learned=False),)).input_ids.tolist(), one[None])
        for image, one in zip(shown.images, embeds, strict=True)
    ]
    replies = [
        reply
        for part in _parts(len(prompts))
        for reply in generate(
            subject.model, prompts[part], max_new_tokens=LONGEST, images="never", tokenizer=subject.tokenizer
        )
    ]
    return [reply.text for reply in replies]


def caption_scores(texts: Sequence[str], shown: Shown) -> Items:
    """CIDEr-D against four true captions, and the objects that are named with the right colour and shape."""
    scenes = [sample.meta["scene"] for sample in shown.samples]
    references = [
        [tokenize(caption(scene, np.random.default_rng([index, number]), style)) for number, style in enumerate(STYLES)]
        for index, scene in enumerate(scenes)
    ]
    agreed = [agreement(mentioned_objects(text), scene) for text, scene in zip(texts, scenes, strict=True)]
    return {
        "caption CIDEr-D": cider_scores([tokenize(text) for text in texts], references).tolist(),
        "caption objects, F1": [2 * right / (named + there) for right, named, there in agreed],
        "caption all objects right": [float(right == named == there) for right, named, there in agreed],
    }


def drawn(subject: Subject, shown: Shown) -> Tensor:
    """x_v [n, N, d] that the model regresses after each sentence, feeding on its own embeddings."""
    prompts = [
        Prompt(subject.builder.prompt((Text(sentence),), draw=True).input_ids.tolist()) for sentence in shown.sentences
    ]
    replies = [
        reply for part in _parts(len(prompts)) for reply in generate(subject.model, prompts[part], max_new_tokens=0)
    ]
    return torch.stack([reply.pictures[0] for reply in replies])


@torch.no_grad()
def drawings(subject: Subject, fitted: Shown, unseen: Shown) -> Items:
    """Sentence to free-running embeddings to z_v: is the sentence's own picture the nearest, and how near is it?"""
    mean = fitted.image_condition.mean(0)
    estimate = subject.model.decode_images(drawn(subject, unseen)).image.cpu()
    return {
        "drawn picture recall@1": found_first(estimate, unseen.image_condition, mean),
        "drawn e_v cosine": centred_cosine(estimate, unseen.image_condition, mean),
    }


@torch.no_grad()
def fit_regression_head(subject: Subject, shown: Shown) -> None:
    """Give the model the regression head that is the best on true sentences and embeddings, in closed form."""
    embeds = subject.embeds(shown.images)
    samples = [Sample((Text(sample.text), sample.images[0])) for sample in shown.samples]
    before = [hidden[:, :-1][batch.visual_target[:, 1:]].cpu() for batch, hidden in subject.hidden(samples, embeds)]
    found = ridge(torch.cat(before), embeds.flatten(0, 1), HEAD_DECAY)
    cast(nn.Linear, subject.model.regression_head).weight.copy_(found.T)
