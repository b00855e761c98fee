"""Any backbone with a linear head over its pooled vector: which of K classes a picture shows.

Legend: B pictures, C width of the backbone, K classes.
"""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
import copy
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.models.reduced_vit import ReducedViT
from tessera.vision.base import VisionBackbone, VisionOutput
from tessera.vision.registry import create, import_architectures
from tessera.vision.vit_published import as_plain

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class NamesClasses(Protocol):
    """What is trained and judged by which of its classes a picture shows."""

    training: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes in the order of the logits."""
        ...

    def __call__(self, pixel_values: Tensor, /) -> Any:
        """Pictures [B, channels, H, W] -> something with `logits` [B, K]."""
        ...


import_architectures()  # so that a folder with any of them inside can be read


@strict
class ImageClassifierConfig(PreTrainedConfig):
    """A backbone's configuration, the classes (as `id2label`, the way of transformers), and how pictures enter.

    Args:
        backbone_config: a configuration or its dictionary; its model type says which backbone it is.
        image_size: pixels a side that pictures are brought to; 0 for that of the backbone.
        image_mean, image_std: of each channel, for values in [0, 1]; ImageNet's by default.
        fit: "crop" cuts the middle out, "squash" changes proportions.
        reads: what the head reads: the backbone's own "pooled" vector, or the mean of its "tokens", where that vector
            is a class token which nothing has trained.
    """

    model_type = "tessera-image-classifier"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="tessera-vit")}

    backbone_config: Any = None
    image_size: int = 0
    image_mean: list[float] | tuple[float, ...] = IMAGENET["mean"]
    image_std: list[float] | tuple[float, ...] = IMAGENET["std"]
    fit: Literal["crop", "squash"] = "crop"
    reads: Literal["pooled", "tokens"] = "pooled"

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        self.image_size = self.image_size or self.backbone_config.image_size

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes in the order of the logits."""
        labels: Any = self.id2label or {}
        return tuple(labels[place] for place in range(len(labels)))


class ImageClassifier(PreTrainedModel):
    """The backbone's pooled vector, which the architecture has already normed, or the mean of its tokens, through one
    linear layer.

    Args:
        backbone: a ready one, taken as it is with its weights; by default made from the configuration.
    """

    config: ImageClassifierConfig
    config_class = ImageClassifierConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: ImageClassifierConfig, backbone: VisionBackbone | None = None) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config) if backbone is None else backbone
        self.head = nn.Linear(self.backbone.width, len(config.classes))
        self.head.no_muon = True  # type: ignore[assignment]
        self.post_init()

    @classmethod
    def over(cls, backbone: str | VisionBackbone, classes: Sequence[str], **fields: Any) -> "ImageClassifier":
        """A classifier with a new head over a backbone by name, from a folder, or ready with its weights.

        Args:
            fields: further fields of `ImageClassifierConfig`.

        Raises:
            UserError: fewer than two classes, or two of one name; or as `tessera.vision.registry.create`.
        """
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise UserError(f"a classifier needs two or more classes of different names, not {list(classes)}")
        eyes = create(backbone) if isinstance(backbone, str) else backbone
        places = {name: place for place, name in enumerate(classes)}
        config = ImageClassifierConfig(
            backbone_config=eyes.config, id2label=dict(enumerate(classes)), label2id=places, **fields
        )
        return cls(config, eyes)

    def reduced(self, **fields: Any) -> "ImageClassifier":
        """A copy whose ViT has fewer tokens in its later blocks, in evaluation mode. Nothing is trained. A published
        ViT, masked autoencoder or DINOv2 becomes a plain ViT with the same weights.

        Args:
            fields: of `ReducedViTConfig`, those beside a plain ViT's.

        Raises:
            UserError: the backbone is of another architecture, or as `ReducedViT.over`.
        """
        plain = as_plain(self.backbone)
        if plain is None:
            eyes = getattr(self.backbone, "vision", self.backbone)  # a published one is in a wrapping
            raise UserError(
                f"tokens are reduced in a plain ViT, and this classifier has a {type(eyes).__name__}; take a ViT, DeiT,"
                " ViT-MAE or DINOv2"
            )
        eyes, config = ReducedViT.over(plain, **fields), copy.deepcopy(self.config)
        config.backbone_config = eyes.config
        model = ImageClassifier(config, eyes)
        model.head.load_state_dict(self.head.state_dict())
        model.head.to(self.head.weight)
        return model.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes in the order of the logits."""
        return self.config.classes

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool = False
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits [B, K] of pictures [B, channels, H, W]; with labels, int [B] or shares float [B, K], the mean
        cross-entropy too. Hidden states are those of the backbone."""
        seen = self.backbone(pixel_values, output_hidden_states=output_hidden_states)
        logits = self.head(self.vectors(seen))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=seen.hidden_states)

    def vectors(self, seen: VisionOutput) -> Tensor:
        """What the head reads of what the backbone saw, [B, C]."""
        return seen.pooled if self.config.reads == "pooled" else seen.tokens.mean(dim=1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.head:
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


AutoConfig.register(ImageClassifierConfig.model_type, ImageClassifierConfig)
AutoModel.register(ImageClassifierConfig, ImageClassifier)
AutoModelForImageClassification.register(ImageClassifierConfig, ImageClassifier)
