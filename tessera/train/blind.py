"""The text-only reference: a language model that reads captions without their pictures, and what it makes of them.

A model that has read a caption knows it by heart, which would make every word of it count nothing. So captions fall
into two halves by their own tokens (those that read the same into one), a reference learns each half, and each half is
scored by the reference that has not read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tessera.data.blind import BlindBuilder, Scores, key
from tessera.data.few import Only
from tessera.data.loader import Loader
from tessera.data.mixture import Mixture
from tessera.data.packing import Batch, Packer, collate_rows, first_fit_decreasing
from tessera.data.sequence import IGNORED
from tessera.data.sequence import Sequence as Tokens
from tessera.data.source import Source
from tessera.errors import BadSample, DataError
from tessera.models.adapters import add_lora
from tessera.models.causal import read_words
from tessera.objectives.next_token import next_token
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage

HALVES = (0, 1)
_TOGETHER = 512  # sequences that are packed and scored at once


@dataclass(frozen=True, kw_only=True)
class Reference:
    """How the blind references learn.

    Args:
        steps: of each of the two.
        rows: packed rows of one update, of all processes together.
        rank, lora_alpha: of adapters on all linear layers, the rest of which stays. With rank 0 the whole model learns,
            which over-fits where it reads captions more than once, and then all words count alike.
    """

    steps: int
    rows: int
    rank: int
    lora_alpha: int = 0
    optimiser: Optimiser


@dataclass
class Captions:
    """Sources of captions as a blind model reads them, each with its share of the mixture.

    Args:
        sources: samples that read the same each time they are asked for.
    """

    sources: Sequence[tuple[Source, float]]
    builder: BlindBuilder
    _refused: list[str] = field(init=False, default_factory=list)

    @cached_property
    def sequences(self) -> list[tuple[int, int, Tokens]]:
        """Every usable sample: number of its source, its place there, its tokens. Bad ones are left to the loaders,
        which count them."""
        found = []
        for number, (source, _) in enumerate(self.sources):
            for place in range(len(source)):
                try:
                    found.append((number, place, self.builder.build(source[place])))
                except BadSample as error:
                    self._refused.append(f"{source.name}[{place}]: {error}")
        return found

    @property
    def mixture(self) -> Mixture:
        """All samples."""
        return Mixture(self.sources)

    def halves(self) -> list[Mixture]:
        """The samples of each half.

        Raises:
            DataError: a half is empty.
        """
        places: list[list[list[int]]] = [[[] for _ in self.sources] for _ in HALVES]
        for number, place, tokens in self.sequences:
            places[half_of(tokens)][number].append(place)
        found = []
        for half, rows in zip(HALVES, places, strict=True):
            if not any(rows):
                names = ", ".join(source.name for source, _ in self.sources)
                bad = f"; {len(self._refused)} cannot be used, the last: {self._refused[-1]}" if self._refused else ""
                raise DataError(
                    f"{names}: too few different captions to make two halves of, and half {half} is empty{bad}"
                )
            parts = zip(self.sources, rows, strict=True)
            found.append(Mixture([(Only(source, row), share) for (source, share), row in parts if row]))
        return found


def half_of(tokens: Tokens) -> int:
    """0 or 1, by the hash of the tokens."""
    return key(tokens.input_ids, tokens.labels)[0] % 2


def reference_stages(
    captions: Captions, new: Callable[[], PreTrainedModel], wanted: Reference, row_length: int,
    made: list[PreTrainedModel], **places: int,
) -> Iterator[Stage]:  # fmt: skip
    """A stage for each half, in which a language model of its own learns those captions packed, without pictures.

    Args:
        new: makes the language model that a reference starts from.
        made: takes the references, in the order of the halves.
        places: `seed`, `rank` and `world_size` of the loaders.

    Raises:
        DataError: a half is empty.
    """
    for half, source in zip(HALVES, captions.halves(), strict=True):
        model = new()
        if wanted.rank:
            add_lora(model, rank=wanted.rank, alpha=wanted.lora_alpha)
        made.append(model)
        packer = Packer(captions.builder, wanted.rows, row_length, pad_id=_pad(model))
        yield Stage(
            name=f"reference-{half}", model=model, objective=_blind_words, loader=Loader(source, packer, **places),
            steps=wanted.steps, optimiser=wanted.optimiser, trainable=("*lora_*" if wanted.rank else "*",),
        )  # fmt: skip


def _blind_words(model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, int]]:
    logits, words, _ = read_words(model, batch.input_ids, batch.labels, batch.segment_ids)  # type: ignore[arg-type]
    return {"words": tuple(next_token(logits, words))}  # type: ignore[dict-item]


def _pad(model: PreTrainedModel) -> int:
    return model.config.pad_token_id or 0


def score(captions: Captions, references: Sequence[PreTrainedModel], rows: int, row_length: int) -> Scores:
    """What each half's captions are worth to the reference of the other half.

    Args:
        references: number h has learned half h.
    """
    found: dict[bytes, np.ndarray] = {}
    waiting: list[list[Tokens]] = [[] for _ in HALVES]

    def settle(half: int) -> None:
        found.update(_scored(references[1 - half], waiting[half], rows, row_length))
        waiting[half] = []

    for _, _, tokens in captions.sequences:
        half = half_of(tokens)
        waiting[half].append(tokens)
        if len(waiting[half]) == _TOGETHER:
            settle(half)
    for half in HALVES:
        settle(half)
    return Scores(found)


@torch.no_grad()
def _scored(
    model: PreTrainedModel, sequences: Sequence[Tokens], rows: int, row_length: int
) -> Iterator[tuple[bytes, np.ndarray]]:
    model.eval()
    packed = first_fit_decreasing([len(one) for one in sequences], row_length)
    for start in range(0, len(packed), rows):
        groups = [[sequences[place] for place in row] for row in packed[start : start + rows]]
        batch = collate_rows(groups, row_length, _pad(model)).to(model.device)
        logits, words, steps = read_words(model, batch.input_ids, batch.labels, batch.segment_ids)
        blind = torch.zeros(batch.labels.shape, device=model.device)  # a word with nothing before it cannot be guessed
        blind[:, 1:][steps] = logits.float().softmax(-1).gather(-1, words[:, None])[:, 0]
        kept = blind.cpu().numpy().astype(np.float16)
        for row, group in enumerate(groups):
            at = 0
            for one in group:
                own = kept[row, at : at + len(one)][one.labels != IGNORED]
                at += len(one)
                yield key(one.input_ids, one.labels), own
