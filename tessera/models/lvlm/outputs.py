"""What a language model with eyes returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput

from tessera.objectives.tally import Tally


@dataclass
class LVLMOutput(ModelOutput):
    """B rows, L positions, K learned words, V words of the vocabulary.

    loss: sum of the cross-entropies over the denominator; None without labels.
    text: (sum, K) of this batch; None without labels.
    logits: [B, L, V]; with labels [K, V], of the learned words alone, in reading order.
    words: with labels int64 [K], the learned words themselves.
    past_key_values: where the caller asked for a cache.
    hidden_states, attentions: where asked for, those of the language model.
    """

    loss: Tensor | None = None
    text: Tally | None = None
    logits: Tensor | None = None
    words: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @classmethod
    def of(cls, said: ModelOutput) -> LVLMOutput:
        """What a language model of transformers returned."""
        names = ("logits", "past_key_values", "hidden_states", "attentions")
        return cls(**{name: said.get(name) for name in names})

    @property
    def num_text_targets(self) -> int:
        """Words predicted in this batch."""
        return 0 if self.text is None else self.text.number
