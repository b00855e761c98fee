"""What the language model reads of visual embeddings, where these are not read as they are."""

from __future__ import annotations

from torch import Tensor, nn

from tessera.layers.mlp import Mlp


class VisualProjector(nn.Module):
    """Linear, GELU, Linear of each embedding, and beside it what is learned of its place in the picture.

    Args:
        number: N, embeddings of a picture.
        width: d.
    """

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, width)
        self.places = nn.Embedding(number, width)

    def forward(self, embeds: Tensor, first: int = 0) -> Tensor:
        """Embeddings [..., K, d] at places `first` to first + K -> what stands for them, [..., K, d]."""
        return self.mlp(embeds) + self.places.weight[first : first + embeds.shape[-2]]
