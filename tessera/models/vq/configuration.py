"""Configuration of image tokenizers with a codebook. The defaults are ViT-VQGAN's Small-Small at 256 pixels."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.vision.base import at_least_one, whole_tiles


@strict
class VQConfig(PreTrainedConfig):
    """How pictures become codes and codes pictures. Pictures have values in [0, 1].

    Args:
        architecture: "vit" (ViT-VQGAN), or "conv" (VQGAN), which has `conv_widths` and `conv_blocks` instead of depths
            and heads, and whose tiles are 2 ** (len(conv_widths) - 1) pixels wide.
        encoder_width, encoder_depth, encoder_heads: of the encoder; the decoder's are the same where they are 0.
        head_width: of every attention head; 0 for width / heads.
        activation, qkv_bias, tanh_head, positions: see `tessera.tokenizers.vit.ViTShape`.
        centred: pictures enter the encoder within [-1, 1], as VQGAN's do, and not within [0, 1], where what all tiles
            share is most of what new weights see of them.
        codes: K, entries of the codebook.
        code_width: D of the factorised look-up; 0 looks vectors up at the encoder's width.
        normalise: vectors and codes of length 1.
        codebook: how codes move: "loss" or "ema".
        code_init: codes from N(0, 1), or "uniform" within 1 / K.
        restart: batches of training that a code may go unchosen before it moves to where vectors are; 0: for ever.
        commitment: beta, the factor on the loss that draws vectors to their codes.
        logit_laplace: the decoder gives mean and spread of each pixel's logit instead of the pixel.
    """

    model_type = "tessera-vq"

    architecture: Literal["vit", "conv"] = "vit"
    image_size: int = 256
    num_channels: int = 3
    patch_size: int = 8
    encoder_width: int = 512
    encoder_depth: int = 8
    encoder_heads: int = 8
    decoder_width: int = 0
    decoder_depth: int = 0
    decoder_heads: int = 0
    mlp_ratio: float = 4.0
    head_width: int = 0
    activation: str = "gelu"
    qkv_bias: bool = True
    tanh_head: bool = True
    positions: Literal["learned", "sine2d"] = "learned"
    conv_widths: list[int] | tuple[int, ...] = (128, 128, 256, 256)
    conv_blocks: int = 2
    centred: bool = False
    codes: int = 8192
    code_width: int = 32
    normalise: bool = True
    codebook: Literal["loss", "ema"] = "loss"
    ema_decay: float = 0.99
    code_init: Literal["normal", "uniform"] = "normal"
    restart: int = 0
    commitment: float = 0.25
    logit_laplace: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        at_least_one(self, "image_size", "num_channels", "patch_size", "codes", "conv_blocks")
        for field in ("width", "depth", "heads"):
            if not getattr(self, f"decoder_{field}"):
                setattr(self, f"decoder_{field}", getattr(self, f"encoder_{field}"))
            at_least_one(self, f"encoder_{field}", f"decoder_{field}")
        if self.architecture == "vit" and not self.head_width:
            for width, heads in ((self.encoder_width, self.encoder_heads), (self.decoder_width, self.decoder_heads)):
                if width % heads:
                    raise UserError(f"a width of {width} does not divide into {heads} heads; change one of them")
        if not self.code_width and self.encoder_width != self.decoder_width:
            raise UserError(
                f"code_width is 0, so that the decoder reads codes of the encoder's width {self.encoder_width} and not"
                f" of {self.decoder_width}; set code_width, or one of the widths"
            )
        if self.restart < 0:
            raise UserError(f"codes cannot move after {self.restart} batches; restart is 0 or more")
        whole_tiles(self.image_size, self.image_size, self.tile)

    @property
    def tile(self) -> int:
        """Pixels a side that one code stands for."""
        return self.patch_size if self.architecture == "vit" else 2 ** (len(self.conv_widths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the codes of a picture of `image_size`."""
        return whole_tiles(self.image_size, self.image_size, self.tile)


AutoConfig.register(VQConfig.model_type, VQConfig)
