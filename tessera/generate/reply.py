"""What generation is given and what it gives back. N embeddings a picture, d width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids, one after another, and the embeddings [m, N, d] of the m pictures whose placeholders are among
    them."""

    input_ids: Sequence[int] | Tensor
    image_embeds: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """A run of generated words; `text` is None without a tokenizer."""

    ids: tuple[int, ...]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A generated picture as embeddings [N, d], for `decode_images`."""

    embeds: Tensor


@dataclass(frozen=True, slots=True)
class Reply:
    """What was generated after one prompt, in order, without the end token and without the pictures'
    delimiters.

    `ended` is True where the model stopped by itself, False where a limit stopped it.
    """

    segments: tuple[Words | Picture, ...]
    ended: bool

    @property
    def ids(self) -> list[int]:
        """All generated words."""
        return [word for segment in self.segments if isinstance(segment, Words) for word in segment.ids]

    @property
    def text(self) -> str:
        """All generated text, stripped of outer spaces. Empty without a tokenizer."""
        return "".join(s.text or "" for s in self.segments if isinstance(s, Words)).strip()

    @property
    def pictures(self) -> list[Tensor]:
        """The embeddings [N, d] of each generated picture."""
        return [segment.embeds for segment in self.segments if isinstance(segment, Picture)]


def assemble(pieces: Iterable[int | Tensor], ended: bool, tokenizer: PreTrainedTokenizerBase | None = None) -> Reply:
    """Words (int) and pictures [N, d] in order, as a Reply; words side by side become one run."""
    segments: list[Words | Picture] = []
    for is_word, run in groupby(pieces, key=lambda piece: isinstance(piece, int)):
        if is_word:
            ids = tuple(int(word) for word in run)
            text = None if tokenizer is None else str(tokenizer.decode(list(ids), skip_special_tokens=True))
            segments.append(Words(ids, text))
        else:
            segments += [Picture(picture) for picture in run]  # type: ignore[arg-type]
    return Reply(tuple(segments), ended)
