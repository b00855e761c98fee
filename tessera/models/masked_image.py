"""Any backbone with a light head that restores hidden pixels: masked image modelling in pixel space, as GMML does it
(Atito et al. 2022, arXiv 2205.14986). The head is thrown away afterwards.

Legend: B pictures of 3 channels and H x W pixels, h x w token grid, C width of the backbone.
"""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import MaskedImageModelingOutput

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.layers.pixels import PixelHead
from tessera.objectives.masked_l1 import masked_l1
from tessera.vision.base import VisionBackbone, whole_tiles
from tessera.vision.registry import create, import_architectures

import_architectures()  # so that a folder with any of them inside can be read


@strict
class MaskedImageConfig(PreTrainedConfig):
    """A backbone's configuration, and what its pixels are restored from.

    Args:
        backbone_config: a configuration or its dictionary; its model type says which backbone it is.
        blocks: whose outputs are averaged, counted from the last, which is -1; none for the last alone. GMML's are 6,
            8, 10 and 12 of 12.
        everywhere: the loss is of all pixels, not of the hidden ones alone.
    """

    model_type = "tessera-masked-image"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="tessera-vit")}

    backbone_config: Any = None
    blocks: list[int] | tuple[int, ...] = (-7, -5, -3, -1)
    everywhere: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        if any(block >= 0 for block in self.blocks):
            raise UserError(f"blocks is {list(self.blocks)}; they are counted from the last, as in -7, -5, -3, -1")


class MaskedImageModel(PreTrainedModel):
    """Corrupted pictures in, whole ones out.

    Args:
        backbone: a ready one, taken as it is with its weights; by default made from the configuration.

    Raises:
        UserError: the tokens' grid does not divide the picture.
    """

    config: MaskedImageConfig
    config_class = MaskedImageConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: MaskedImageConfig, backbone: VisionBackbone | None = None) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config) if backbone is None else backbone
        eyes: Any = self.backbone.config
        rows, columns = self.backbone.grid_of(eyes.image_size, eyes.image_size)
        tile = eyes.image_size // rows, eyes.image_size // columns
        if whole_tiles(eyes.image_size, eyes.image_size, tile[0]) != (rows, columns):
            raise UserError(
                f"{eyes.image_size} pixels do not divide into {rows} x {columns} tokens, so that no head restores them"
            )
        self.head = PixelHead(self.backbone.width, tile, eyes.num_channels)
        self.post_init()

    @classmethod
    def over(cls, backbone: str | VisionBackbone, **fields: Any) -> "MaskedImageModel":
        """A new head over a backbone by name, from a folder, or ready with its weights.

        Args:
            fields: further fields of `MaskedImageConfig`.

        Raises:
            UserError: as the constructor and `tessera.vision.registry.create`.
        """
        eyes = create(backbone) if isinstance(backbone, str) else backbone
        return cls(MaskedImageConfig(backbone_config=eyes.config, **fields), eyes)

    def features(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The mean of the chosen blocks' outputs after the final norm, [B, h * w, C], and the grid.

        Raises:
            UserError: the backbone has no such block, or one of another width or grid.
        """
        blocks = self.config.blocks
        seen = self.backbone(pixel_values, output_hidden_states=bool(blocks))
        if not blocks:
            return seen.tokens, seen.grid
        states = seen.hidden_states
        if -min(blocks) > len(states):
            raise UserError(f"blocks is {list(blocks)}, but the backbone has {len(states)}; -1 is the last")
        chosen = [states[block] for block in blocks]
        if any(state.shape != states[-1].shape for state in chosen):
            shapes = ", ".join(str(list(state.shape[1:])) for state in chosen)
            raise UserError(f"blocks {list(blocks)} give tokens of several shapes ({shapes}); take blocks of one stage")
        # The norm comes after the mean, the class token goes after the norm, as released.
        mean = self.backbone.final_norm(torch.stack(chosen).mean(0))
        return mean[:, mean.shape[1] - seen.grid[0] * seen.grid[1] :], seen.grid

    def forward(
        self, pixel_values: Tensor, targets: Tensor | None = None, mask: Tensor | None = None
    ) -> MaskedImageModelingOutput:
        """`reconstruction` [B, 3, H, W] of corrupted pictures of that shape; with the clean ones as targets the mean
        loss too, of what `mask`, bool [B, 1, H, W], says was hidden."""
        restored = self.head(*self.features(pixel_values))
        loss = None
        if targets is not None:
            loss = masked_l1(restored, targets, None if self.config.everywhere else mask).mean()
        return MaskedImageModelingOutput(loss=loss, reconstruction=restored)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            module.reset_parameters()
        else:
            super()._init_weights(module)


def restore(model: Any, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """The objective of a training stage over batches of `tessera.train.masked_images`."""
    restored = model(batch["pixel_values"]).reconstruction
    loss = masked_l1(restored, batch["targets"], None if model.config.everywhere else batch["mask"])
    return {"pixels": (loss.total, loss.number)}


AutoConfig.register(MaskedImageConfig.model_type, MaskedImageConfig)
AutoModel.register(MaskedImageConfig, MaskedImageModel)
