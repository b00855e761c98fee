"""Any causal language model of transformers, asked for the words that are learned alone.

Legend: B rows, L positions, K learned words, V words of the vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tessera.layers.masks import positions_within
from tessera.models.lvlm.language import head_reads, packed_mask
from tessera.objectives.routing import route


def read_words(
    model: PreTrainedModel, input_ids: Tensor, labels: Tensor, segment_ids: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [K, V] and learned words int64 [K] in reading order, and bool [B, L - 1], the steps to them.

    Args:
        input_ids, labels: [B, L], labels unshifted; -100 where the position is no learned word.
        segment_ids: [B, L] of packed rows, 0 for padding; None: each row is one sequence.

    Raises:
        UserError: packed rows for a model that cannot keep them apart.
    """
    steps = route(labels, None, segment_ids).text
    apart: dict[str, Any] = {}
    if segment_ids is not None:
        places = positions_within(segment_ids)
        mask = packed_mask(model, segment_ids, places, model.get_input_embeddings().weight.dtype)  # type: ignore[arg-type]
        apart = {"position_ids": places, "attention_mask": mask}
    with head_reads(model.get_output_embeddings(), steps):
        said = model(input_ids=input_ids, use_cache=False, return_dict=True, **apart)
    return said.logits[0], labels[:, 1:][steps], steps
