"""What models built around a causal language model share: its table of words and its head are theirs."""

from __future__ import annotations

from os import PathLike
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tessera.models.adapters import refuse_adapters


class AroundLanguageModel(PreTrainedModel):
    """A model with a causal language model of transformers as its part `language_model`.

    Whatever transformers does to the words of a model (resizing, tying, adapters) reaches those of the part.
    """

    language_model: PreTrainedModel

    main_input_name = "input_ids"
    input_modalities = ["text", "image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def save_pretrained(self, save_directory: str | PathLike[Any], *arguments: Any, **options: Any) -> None:
        """As everywhere. Adapters are merged first: beside them weights have names that no plain model loads.

        Raises:
            UserError: adapters are not merged yet.
        """
        refuse_adapters(self)
        super().save_pretrained(save_directory, *arguments, **options)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's table of words."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Give the language model another table of words."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Give the language model another head."""
        self.language_model.set_output_embeddings(new_embeddings)
