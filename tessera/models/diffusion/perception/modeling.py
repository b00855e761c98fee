"""A text-to-image U-Net that perceives: one pass over a clean latent, with words, and a light head on what it saw.

VPD (Zhao et al. 2023, arXiv 2303.02153).

Shape legend: B pictures of H x W pixels; N words of D channels; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel, PreTrainedModel
from transformers.utils import ModelOutput

from tessera.errors import UserError
from tessera.models.diffusion.perception.configuration import PerceptionConfig
from tessera.models.diffusion.perception.heads import DepthDecoder, ReferringDecoder, SemanticFPN
from tessera.models.diffusion.perception.inputs import LatentEncoder, TextAdapter, patch_of, unet_input
from tessera.models.diffusion.perception.pyramid import UNetPyramid, grid_of, without_output
from tessera.objectives.dense import dense_loss

FROZEN = ("autoencoder", "text")


@dataclass
class PerceptionOutput(ModelOutput):
    """`logits` [B, K, H, W] of classes, [B, 2, H, W] of the rest and the thing that a phrase names; or `depth`
    [B, H, W] in (0, max_depth)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    depth: Tensor | None = None


class PerceptionModel(PreTrainedModel):
    """Autoencoder and text tower, both frozen, text adapter, U-Net and head.

    Args:
        unet, autoencoder, text: ready parts, taken as they are with their weights; by default made from the
            configuration.

    Attributes:
        class_vectors: [K, D], what the text tower says of each class; absent where phrases are read.

    Raises:
        UserError: parts of another kind, or that do not belong together.
    """

    config: PerceptionConfig
    config_class = PerceptionConfig
    base_model_prefix = "pyramid"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    class_vectors: Tensor

    def __init__(
        self, config: PerceptionConfig, unet: Any = None, autoencoder: Any = None, text: CLIPTextModel | None = None
    ) -> None:
        super().__init__(config)
        unet = UNet2DConditionModel.from_config(dict(config.unet_config or {})) if unet is None else unet
        if config.task == "depth":
            unet = without_output(unet)
        self.autoencoder = LatentEncoder(config.autoencoder_config or {}, config.scaled, autoencoder)
        self.pyramid = UNetPyramid(unet, config.largest_map)
        width = unet.config.cross_attention_dim
        self.adapter = TextAdapter(width, config.gamma)
        self.text = None
        if config.task == "referring":
            self.text = (_tower(config) if text is None else text).requires_grad_(False)
            places = self.text.config.max_position_embeddings
            if config.words > places:
                raise UserError(f"phrases of {config.words} words do not fit the {places} places of the text tower")
        else:
            self.register_buffer("class_vectors", torch.zeros(len(config.classes), width))
        patch = patch_of(unet.config, self.autoencoder.latents)
        self.tile = self.autoencoder.stride * patch * 2 ** (self.pyramid.stages - 1)
        side = config.image_size
        grid_of((side, side), self.depth_tile if config.task == "depth" else self.tile, "a picture")
        self.head = self._head()
        self.post_init()

    def _head(self) -> nn.Module:
        config, channels = self.config, self.pyramid.channels(self.config.tokens)
        if config.task == "segmentation":
            return SemanticFPN(channels, len(config.classes), config.width, config.dropout, config.finer)
        if config.task == "referring":
            return ReferringDecoder(channels, config.finer)
        return DepthDecoder(channels, self.depth_tile, config.width)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes in the order of the logits."""
        return self.config.classes

    @property
    def depth_tile(self) -> int:
        """Pixels a side of one place of the map that depth is told from, the coarsest but one."""
        return self.tile // 2 if self.pyramid.stages > 1 else self.tile

    def train(self, mode: bool = True) -> PerceptionModel:
        """As of every module; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in (getattr(self, name) for name in FROZEN):
            if part is not None:
                part.eval()
        return self

    # ---- what the U-Net sees

    def words(
        self, size: int, input_ids: Tensor | None = None, class_ids: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Adapted words [size, N, D]: of phrases, int [size, N]; of the one class of each picture, int [size], for
        depth; of all classes."""
        if self.text is not None:
            assert input_ids is not None, "phrases are needed"
            with torch.no_grad():
                told = self.text(input_ids).last_hidden_state
        elif self.config.task == "depth":
            places = torch.zeros(size, dtype=torch.long, device=self.device) if class_ids is None else class_ids
            told = self.class_vectors[places][:, None]
        else:
            told = self.class_vectors.expand(size, -1, -1)
        return self.adapter(told)

    def features(self, latents: Tensor, words: Tensor) -> list[Tensor]:
        """Feature maps from fine to coarse of clean latents [B, Z, h, w] with words [B, N, D]: see `UNetPyramid`."""
        steps = torch.full((len(latents),), self.config.timestep, dtype=torch.long, device=latents.device)
        return self.pyramid(unet_input(self.pyramid.unet, latents), steps, words)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Clean latents of pictures [B, 3, H, W] in [-1, 1], of whole tiles; depth is told of half tiles too, to which
        zeros are added at the right and below.

        Raises:
            UserError: the picture does not divide into tiles.
        """
        size = pixel_values.shape[-2:]
        if self.config.task == "depth":
            grid_of(size, self.depth_tile)
            pixel_values = F.pad(pixel_values, (0, -size[1] % self.tile, 0, -size[0] % self.tile))
        grid_of(pixel_values.shape[-2:], self.tile)
        return self.autoencoder(pixel_values)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        class_ids: Tensor | None = None,
        latents: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> PerceptionOutput:
        """What the task asks of pictures [B, 3, H, W] in [-1, 1], or of what `encode` gave for pictures of
        `image_size`.

        Args:
            input_ids: phrases int [B, words], for "referring".
            class_ids: which class each picture is of, int [B], for "depth"; the first one by default.
            labels: see `tessera.objectives.dense`; then the mean loss is given too.
        """
        size = (self.config.image_size,) * 2 if pixel_values is None else tuple(pixel_values.shape[-2:])
        if latents is None:
            assert pixel_values is not None, "pictures or latents are needed"
            latents = self.encode(pixel_values)
        seen = self.features(latents, self.words(len(latents), input_ids, class_ids))
        found = PerceptionOutput()
        if self.config.task == "depth":
            found.depth = self.head(seen, size)[:, 0].sigmoid() * self.config.max_depth
        else:
            corners = self.config.task == "referring"
            found.logits = F.interpolate(self.head(seen), size=size, mode="bilinear", align_corners=corners)
        if labels is not None:
            found.loss = dense_loss(self.config.task, found, labels).mean()
        return found

    def vectors(self, seen: Sequence[Tensor]) -> Tensor:
        """Mean features of the U-Net's stages side by side, [B, sum of C_i], without the attention maps."""
        plain = self.pyramid.channels(0)
        return torch.cat([one[:, :width].mean((2, 3)) for one, width in zip(seen, plain, strict=True)], dim=1)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every part starts as its own paper has it when it is made."""


def _tower(config: PerceptionConfig) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig.from_dict(dict(config.tower_config or {})))


AutoModel.register(PerceptionConfig, PerceptionModel)
