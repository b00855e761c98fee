"""A Sample as the words alone of a language model that has its picture from elsewhere than its sequence.

A caption reads `<s> caption </s>`. A question with its answer reads `<s>`, the question as the model's form writes it,
the answer, `</s>`; further questions about the same picture follow in the same way.

Shapes: B rows, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tessera.data.quality import check_text
from tessera.data.sample import Image, Sample, Text
from tessera.data.sequence import IGNORED, check_length, copied
from tessera.errors import BadSample, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: its tokens, which of them are learned, its picture."""

    ids: list[int]
    learned: list[bool]
    image: Image
    id: str = ""


@dataclass
class Batch:
    """Rows padded on the right: input_ids, attention_mask (0 for padding) and labels (-100 where not learned), int64
    [B, L]; one picture a row."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    images: list[Image]
    sample_ids: list[str]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        names = ("input_ids", "attention_mask", "labels")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


@dataclass
class Beside:
    """Samples to rows.

    Args:
        tokenizer: a fast tokenizer with an end token. It is not changed.
        ask: how a question is written, {} for its words.
        max_length: tokens that a row may have.
        questions_learned: whether the loss is on questions too, as eP-ALM has it, and not on answers alone.

    Raises:
        UserError: the tokenizer has no end token.
    """

    tokenizer: PreTrainedTokenizerFast
    ask: str
    max_length: int
    questions_learned: bool = True
    _rules: Tokenizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end token; give it one with tokenizer.add_special_tokens")
        self._rules = copied(self.tokenizer)

    @property
    def pad_id(self) -> int:
        """What fills rows up; no one reads it."""
        return int(self.tokenizer.pad_token_id or 0)

    @cached_property
    def _begin(self) -> list[int]:
        begin = self.tokenizer.bos_token_id  # some tokenizers have one that their model never read
        return [int(begin)] if begin is not None and self.tokenizer("a").input_ids[:1] == [begin] else []

    def read(self, sample: Sample) -> Row:
        """The whole sample.

        Raises:
            BadSample: it is not about one picture, has a segment or a role that has no place here, a text that is
                empty or holds a mark, nothing to learn, or more than `max_length` tokens.
        """
        images = [segment for segment in sample.segments if isinstance(segment, Image)]
        if len(images) != 1:
            raise BadSample(f"the sample has {len(images)} pictures; this model takes one")
        ids, learned, said = list(self._begin), [False] * len(self._begin), False
        for segment in sample.segments:
            if segment is images[0]:
                continue
            if not isinstance(segment, Text):
                raise BadSample(f"a {type(segment).__name__} segment has no place among the words of one picture")
            if segment.role not in (None, "user", "assistant"):
                raise BadSample(f"a text of role {segment.role!r} has no place here; known are user and assistant")
            asked = segment.role == "user" or (segment.role is None and not segment.learned)
            said |= not asked
            piece = self._asked(segment.text) if asked else self._said(segment.text, bool(len(ids) > len(self._begin)))
            ids += piece
            learned += [self.questions_learned if asked else segment.learned] * len(piece)
        if not said:
            raise BadSample("the sample has nothing to learn: no caption and no answer")
        check_length(len(ids), self.max_length)
        return Row(ids, learned, images[0], sample.id)

    def prompt(self, question: str | None) -> list[int]:
        """What an answer to `question` goes on from; a caption where it is None.

        Raises:
            BadSample: the question is empty, or leaves no room for an answer.
        """
        ids = [*self._begin, *(self._asked(question) if question is not None else [])]
        check_length(len(ids) + 1, self.max_length)
        return ids

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows as a batch, padded on the right."""
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.pad_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for place, row in enumerate(rows):
            words = torch.tensor(row.ids)
            ids[place, : len(words)] = words
            mask[place, : len(words)] = 1
            labels[place, : len(words)] = words.masked_fill(~torch.tensor(row.learned), IGNORED)
        return Batch(ids, mask, labels, [row.image for row in rows], [row.id for row in rows])

    def left(self, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Prompts as ids and mask int64 [B, L], padded on the left, so that all end where their answers begin."""
        length = max(map(len, prompts))
        ids = torch.tensor([[self.pad_id] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return ids, mask

    def _asked(self, text: str) -> list[int]:
        return self._encode(self.ask.replace("{}", self._plain(text)))

    def _said(self, text: str, after: bool) -> list[int]:
        apart = after and not self._marked and not text[:1].isspace()
        return [*self._encode((" " if apart else "") + self._plain(text)), int(self.tokenizer.eos_token_id)]

    def _plain(self, text: str) -> str:
        for mark in self._marks:
            if mark in text:
                raise BadSample(f"the text {text[:40]!r} holds {mark}, which is a mark of the tokenizer")
        return check_text(text)

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        return tuple(str(one) for one in self.tokenizer.get_added_vocab())

    @cached_property
    def _marked(self) -> bool:
        """Whether a mark of the tokenizer's own ends the question, after which no space stands."""
        return self.ask.endswith(self._marks)

    def _encode(self, text: str) -> list[int]:
        return self._rules.encode(text, add_special_tokens=False).ids
