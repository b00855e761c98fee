"""The two-layer network of a transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN


class Mlp(nn.Module):
    """Linear, activation, Linear: [..., width] -> [..., width].

    Args:
        hidden: width between the two.
        activation: a name in transformers' table: gelu (exact), quick_gelu, silu ...
        dropout: share of the result that is dropped in training.
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu", *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(self.activation(self.fc1(x)))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
