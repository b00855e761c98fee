"""Image tokenizers with a codebook: pictures to ids and back (VQGAN, ViT-VQGAN).

Legend: B pictures of C channels and H x W pixels, h x w grid, N = h * w codes of width D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from tessera.errors import UserError
from tessera.layers.positions import PositionTable
from tessera.models.vq.configuration import VQConfig
from tessera.objectives.logit_laplace import expected
from tessera.tokenizers.base import Tokens
from tessera.tokenizers.conv import ConvDecoder, ConvEncoder
from tessera.tokenizers.quantiser import Quantiser
from tessera.tokenizers.vit import ViTDecoder, ViTEncoder, ViTShape
from tessera.vision.base import whole_tiles


@dataclass
class VQOutput(ModelOutput):
    """What a tokenizer makes of B pictures.

    Attributes:
        reconstruction: [B, C, H, W], near [0, 1] and not clipped.
        ids: int64 [B, N].
        codebook, commitment: mean squared distances of codes and vectors, see `Quantised`.
        mean, log_scale: of the pixels' logits [B, C, H, W], with `logit_laplace`.
    """

    reconstruction: Tensor = None  # type: ignore[assignment]
    ids: Tensor = None  # type: ignore[assignment]
    codebook: Tensor = None  # type: ignore[assignment]
    commitment: Tensor = None  # type: ignore[assignment]
    mean: Tensor | None = None
    log_scale: Tensor | None = None


class VQTokenizer(PreTrainedModel):
    """Encoder, codebook, decoder. Pictures are of any size that the tiles fill; positions are interpolated."""

    config: VQConfig
    config_class = VQConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        out = config.num_channels * (2 if config.logit_laplace else 1)
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.architecture == "vit":
            self.encoder = ViTEncoder(_shape(config, "encoder"), config.num_channels)
            self.decoder = ViTDecoder(_shape(config, "decoder"), out)
        else:
            widths, blocks = config.conv_widths, config.conv_blocks
            self.encoder = ConvEncoder(widths, blocks, config.encoder_width, config.num_channels)
            self.decoder = ConvDecoder(widths, blocks, config.decoder_width, out)
        self.quantiser = Quantiser(
            config.encoder_width, config.codes, config.code_width or None, out_width=config.decoder_width,
            normalise=config.normalise, update=config.codebook, decay=config.ema_decay, init=config.code_init,
            restart=config.restart,
        )  # fmt: skip
        self.post_init()

    def states(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pictures [B, C, H, W] in [0, 1] -> what the codebook is asked for, [B, N, W], and the grid.

        Raises:
            UserError: tiles do not fill such a picture, with the nearest size that they do.
        """
        height, width = pixel_values.shape[-2:]
        grid = whole_tiles(height, width, self.config.tile)
        pictures = pixel_values.to(self.dtype)
        return self.encoder(2 * pictures - 1 if self.config.centred else pictures), grid

    @torch.no_grad()
    def encode(self, pixel_values: Tensor, /) -> Tokens:
        """Pictures [B, C, H, W] in [0, 1] -> ids and codes. No gradient.

        Raises:
            UserError: as `states`.
        """
        states, grid = self.states(pixel_values)
        ids = self.quantiser.nearest(self.quantiser.before(states))
        return Tokens(ids, self.quantiser.embed(ids), grid)

    def decode(self, tokens: Tensor, /, grid: tuple[int, int] | None = None) -> Tensor:
        """Ids int [B, N], or codes float [B, N, D], -> pictures [B, C, H, W], clipped to [0, 1].

        Args:
            grid: (h, w) of the tokens; by default a square.

        Raises:
            UserError: an id that is not in the codebook, or tokens that do not fill the grid.
        """
        grid = grid or (math.isqrt(tokens.shape[1]),) * 2
        if grid[0] * grid[1] != tokens.shape[1]:
            raise UserError(f"{tokens.shape[1]} tokens do not fill a grid of {grid[0]} x {grid[1]}; give another grid")
        if not tokens.is_floating_point():
            worst = int(tokens.max()) if int(tokens.min()) >= 0 else int(tokens.min())
            if not 0 <= worst < self.config.codes:
                raise UserError(f"there is no code {worst}; the codebook has {self.config.codes}, the first is 0")
            tokens = self.quantiser.embed(tokens)
        return self._paint(self.quantiser.read(tokens.to(self.dtype)), grid)["reconstruction"].clamp(0, 1)

    def forward(self, pixel_values: Tensor) -> VQOutput:
        """Pictures [B, C, H, W] in [0, 1] through the codes and back.

        Raises:
            UserError: as `states`.
        """
        states, grid = self.states(pixel_values)
        found = self.quantiser(states)
        painted = self._paint(found.states, grid)
        return VQOutput(ids=found.ids, codebook=found.codebook, commitment=found.commitment, **painted)

    def _paint(self, states: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        painted = self.decoder(states, grid)
        if not self.config.logit_laplace:
            return {"reconstruction": painted}
        mean, log_scale = painted.float().chunk(2, dim=1)
        return {"reconstruction": expected(mean), "mean": mean, "log_scale": log_scale}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            if self.config.code_init == "uniform":
                init.uniform_(module.weight, -1 / module.num_embeddings, 1 / module.num_embeddings)
            else:
                init.normal_(module.weight)
        elif isinstance(module, Quantiser):
            if module.update == "ema":
                init.ones_(module.sizes)
                init.copy_(module.sums, module.codes.weight)
            if module.restart:
                init.zeros_(module.idle)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
        elif isinstance(module, PositionTable):
            if isinstance(module.table, nn.Parameter):
                init.trunc_normal_(module.table, std=0.02)
        else:
            super()._init_weights(module)


def _shape(config: VQConfig, side: str) -> ViTShape:
    width = getattr(config, f"{side}_width")
    return ViTShape(
        grid=config.grid, patch=config.patch_size, width=width, depth=getattr(config, f"{side}_depth"),
        heads=getattr(config, f"{side}_heads"), mlp_width=round(width * config.mlp_ratio),
        head_width=config.head_width or None, activation=config.activation, qkv_bias=config.qkv_bias,
        tanh_head=config.tanh_head, positions=config.positions,
    )  # fmt: skip


AutoModel.register(VQConfig, VQTokenizer)
