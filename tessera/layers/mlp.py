"""The two-layer network of a transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tessera.errors import UserError, nearest


class Mlp(nn.Module):
    """Linear, activation, Linear: [..., width] -> [..., out].

    Args:
        hidden: width between the two.
        activation: a name in transformers' table: gelu (exact), quick_gelu, silu ...
        out: width of the result, by default that of the input.
        bias: whether both layers have one.
        dropout: share of the result that is dropped in training.

    Raises:
        UserError: no activation has this name.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "gelu",
        *,
        out: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACT2FN:
            raise UserError(f"no activation is named {activation!r}{nearest(activation, ACT2FN)}")
        self.fc1 = nn.Linear(width, hidden, bias)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(hidden, width if out is None else out, bias)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(self.activation(self.fc1(x)))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
