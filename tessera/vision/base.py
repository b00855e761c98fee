"""What every image encoder gives, whatever is inside: tokens on a grid, one pooled vector, hidden states.

Legend: B pictures, H and W pixels, h x w token grid, N = h * w tokens, C width of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from tessera.errors import UserError
from tessera.layers.positions import PositionTable


@dataclass
class VisionOutput(ModelOutput):
    """What a backbone says of B pictures.

    Attributes:
        tokens: [B, N, C], the grid row by row after the final norm, without class tokens.
        grid: (h, w), with h * w = N.
        pooled: [B, C], what the architecture's own classifier reads: the class token, or the mean of the tokens.
        hidden_states: where asked for, the states after each block as the architecture has them, each
            [B, n_i, C_i]; class tokens and stages of other widths included.
    """

    # Defaults because ModelOutput allows one required field; all three are always there.
    tokens: Tensor = None  # type: ignore[assignment]
    grid: tuple[int, int] = None  # type: ignore[assignment]
    pooled: Tensor = None  # type: ignore[assignment]
    hidden_states: tuple[Tensor, ...] | None = None


class VisionBackbone(PreTrainedModel):
    """An image encoder: the eyes of a model, the tower of a contrastive pair, or what a classifier reads.

    A subclass gives `width`, `grid_of` and `forward`, calls `self.post_init()` last in its constructor, and registers
    its configuration with AutoConfig, itself with AutoModel and its named sizes with `tessera.vision.registry`.
    """

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @property
    def width(self) -> int:
        """C, the width of `tokens` and of `pooled`."""
        raise NotImplementedError

    @property
    def final_norm(self) -> nn.Module:
        """What `tokens` come out of, for states of its width: `norm`, unless a subclass has another."""
        norm: nn.Module = self.norm  # type: ignore[assignment]
        return norm

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """The token grid (h, w) of pictures of height x width pixels.

        Raises:
            UserError: the architecture cannot tile such a picture, with sizes that work.
        """
        raise NotImplementedError

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> VisionOutput:
        """Pictures [B, channels, H, W], normalised as the weights expect, of any size that `grid_of` takes.

        Raises:
            UserError: as `grid_of`.
        """
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear layers from a truncated normal of the configuration's `initializer_range`, 0.02 where it has none, and
        learned position tables from one of 0.02, as transformers for pictures are published; convolutions stay as
        PyTorch makes them. A subclass with other habits or bare parameters overrides this."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=getattr(self.config, "initializer_range", 0.02))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, PositionTable):
            if isinstance(module.table, nn.Parameter):
                init.trunc_normal_(module.table, std=0.02)
        else:
            super()._init_weights(module)


def whole_tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    """How many tiles of `tile` x `tile` pixels make up height x width.

    Raises:
        UserError: they do not divide it, with the nearest size that they do.
    """
    if height < tile or width < tile or height % tile or width % tile:
        near = " x ".join(str(max(1, round(side / tile)) * tile) for side in (height, width))
        raise UserError(
            f"a picture of {height} x {width} pixels cannot be cut into tiles of {tile} x {tile};"
            f" sides that work are multiples of {tile}, the nearest size is {near}"
        )
    return height // tile, width // tile


def at_least_one(config: PreTrainedConfig, *names: str) -> None:
    """Raise UserError where one of these fields of a configuration is below 1."""
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise UserError(f"{name} is {value}; it is at least 1")
