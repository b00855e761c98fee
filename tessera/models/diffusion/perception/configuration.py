"""Configuration of a text-to-image U-Net with a head of perception. The defaults are VPD's for segmentation."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from tessera.errors import UserError
from tessera.vision.base import at_least_one


@strict
class PerceptionConfig(PreTrainedConfig):
    """Parts, what is read of them, and the head. Classes are `id2label`, the way of transformers.

    Args:
        task: "segmentation" names the class of each pixel, "referring" finds what a phrase names, "depth" measures.
        unet_config, autoencoder_config: as diffusers writes them, `_class_name` with the second.
        tower_config: of the CLIP text tower that reads phrases, for "referring"; the others keep vectors of their
            classes.
        image_size: pixels a side that pictures are brought to.
        words: places for a phrase, which is padded to them.
        timestep: that the U-Net is told, for every picture. None is noisy.
        scaled: latents as the U-Net was trained on them; the official code leaves them as the autoencoder gives them.
        largest_map: see `UNetPyramid`; 0 leaves the attention maps out.
        gamma: start of the text adapter's.
        finer: doublings of the finest map in the head.
        width: of the segmentation head, or of the depth head's last features.
        dropout: of the segmentation head.
        max_depth: the largest depth.
    """

    model_type = "tessera-perception"

    task: Literal["segmentation", "referring", "depth"] = "segmentation"
    unet_config: dict[str, Any] | None = None
    autoencoder_config: dict[str, Any] | None = None
    tower_config: dict[str, Any] | None = None
    image_size: int = 512
    words: int = 40
    timestep: int = 1
    scaled: bool = False
    largest_map: float = 0.5
    gamma: float = 1e-4
    finer: int = 0
    width: int = 256
    dropout: float = 0.1
    max_depth: float = 10.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        at_least_one(self, "image_size", "words", "width")
        if self.timestep < 0 or self.finer < 0 or not 0 <= self.largest_map <= 1 or self.max_depth <= 0:
            raise UserError(
                f"timestep {self.timestep} and finer {self.finer} are at least 0, largest_map {self.largest_map} is in"
                f" [0, 1], max_depth {self.max_depth} above 0"
            )
        if self.task == "referring" and self.tower_config is None:
            raise UserError("the task 'referring' needs a text tower; give tower_config")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the words that the U-Net reads."""
        labels: Any = self.id2label or {}
        return tuple(labels[place] for place in range(len(labels)))

    @property
    def tokens(self) -> int:
        """Words that the U-Net reads, and so maps of a resolution."""
        return {"segmentation": len(self.classes), "referring": self.words, "depth": 1}[self.task]


AutoConfig.register(PerceptionConfig.model_type, PerceptionConfig)
