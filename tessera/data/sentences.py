"""Sentences for a model that reads one at a time between two marks, as BERT does: [CLS] words [SEP].

Legend: B sentences, L words of the longest with its marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tessera.errors import CheckpointError

MASK = "[MASK]"


@dataclass(frozen=True)
class Sentences:
    """Text to ids. Where a tokenizer has no [CLS] and [SEP], its marks of beginning and end serve.

    Args:
        max_words: pieces of a sentence with both marks; what is longer is cut.

    Raises:
        CheckpointError: the tokenizer lacks a mark that is needed.
    """

    tokenizer: PreTrainedTokenizerFast
    max_words: int

    def __post_init__(self) -> None:
        for name, number in (("[CLS]", self._begin), ("[SEP]", self._end), (MASK, self.tokenizer.mask_token_id)):
            if number is None:
                raise CheckpointError(f"the tokenizer has no token that serves as {name}; take a BERT tokenizer")

    @property
    def _begin(self) -> int | None:
        return self.tokenizer.bos_token_id if self.tokenizer.cls_token_id is None else self.tokenizer.cls_token_id

    @property
    def _end(self) -> int | None:
        return self.tokenizer.eos_token_id if self.tokenizer.sep_token_id is None else self.tokenizer.sep_token_id

    @property
    def mask_id(self) -> int:
        """What stands for a hidden word."""
        return int(self.tokenizer.mask_token_id)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self.tokenizer)

    def words(self, text: str) -> np.ndarray:
        """The pieces of a sentence without marks, int64, cut to what fits."""
        ids = self.tokenizer(text.strip(), add_special_tokens=False).input_ids
        return np.array(ids[: self.max_words - 2], np.int64)

    def marked(self, words: np.ndarray, begin: int | None = None, end: int | None = None) -> np.ndarray:
        """`words` between the marks, or between two other numbers."""
        marks = (self._begin if begin is None else begin, self._end if end is None else end)
        return np.concatenate([marks[:1], words, marks[1:]]).astype(np.int64)

    def collate(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Marked sentences as ids int64 [B, L] and a mask int64 [B, L], 1 where there is a word."""
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], True, float(pad))
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
