"""Pictures in a run of words: by a mask of the places that wait for them, never by splicing."""

from __future__ import annotations

from torch import Tensor

from tessera.errors import DataError


def fill(embeds: Tensor, slots: Tensor, pictures: Tensor | None) -> Tensor:
    """Put the embeddings of pictures where placeholders stand.

    Args:
        embeds: [B, L, d], with anything at all at the places to be filled.
        slots: bool [B, L], True at the placeholders.
        pictures: [..., d], which fill them in order, row by row; None where there is none.

    Returns:
        [B, L, d].

    Raises:
        DataError: their numbers differ.
    """
    given = 0 if pictures is None else pictures.numel() // pictures.shape[-1]
    if (wanted := int(slots.sum())) != given:
        raise DataError(f"the batch has {wanted} image placeholders but {given} visual embeddings were given")
    return embeds if pictures is None else embeds.masked_scatter(slots[..., None], pictures.to(embeds.dtype))
