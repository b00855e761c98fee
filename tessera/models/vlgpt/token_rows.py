"""The two new words [IMG] and [/IMG] as small parameters beside a frozen language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from tessera.errors import UserError


class ImageTokenRows(nn.Module):
    """Input and output rows [2, d] of [IMG] and [/IMG]: 4 d parameters, 16,384 at published size.

    The language model is frozen under its adapters, yet both words must be learned, and rows of a frozen
    matrix cannot train. Their ids are either entries of the vocabulary, whose own rows are then not read, or
    the next two.

    Raises:
        UserError: one id lies in the vocabulary and the other does not, or they leave a gap after it.
    """

    def __init__(self, width: int, vocab_size: int, ids: tuple[int, int]) -> None:
        super().__init__()
        self.ids = list(ids)
        self.appended = self.ids == [vocab_size, vocab_size + 1]
        if not self.appended and max(ids) >= vocab_size:
            raise UserError(
                f"[IMG] and [/IMG] have ids {ids[0]} and {ids[1]} beside a vocabulary of {vocab_size};"
                f" give them two of its entries, or {vocab_size} and {vocab_size + 1}"
            )
        self.embedding = nn.Parameter(torch.empty(2, width).normal_(std=0.02))
        self.head = nn.Parameter(torch.empty(2, width).normal_(std=0.02))

    @torch.no_grad()
    def start_from(self, language_model: LlamaForCausalLM) -> None:
        """Begin at the language model's own rows of these ids, or at the mean of all where it has none."""
        embedding, head = language_model.model.embed_tokens.weight, language_model.lm_head.weight
        for mine, theirs in ((self.embedding, embedding), (self.head, head)):
            mine.copy_(theirs.mean(0, keepdim=True).expand(2, -1) if self.appended else theirs[self.ids])

    def place(self, input_ids: Tensor, embeds: Tensor) -> Tensor:
        """`embeds` [..., d] of `input_ids` [...], with those of the two words replaced."""
        for row, index in zip(self.embedding, self.ids, strict=True):
            embeds = torch.where((input_ids == index)[..., None], row.to(embeds.dtype), embeds)
        return embeds

    def extend(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """`logits` [..., V] of `hidden` [..., d], with those of the two words replaced in place or appended."""
        rows = hidden @ self.head.to(hidden.dtype).T
        if self.appended:
            return torch.cat([logits, rows.to(logits.dtype)], dim=-1)
        for place, index in enumerate(self.ids):
            logits[..., index] = rows[..., place]
        return logits
