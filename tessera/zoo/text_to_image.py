"""Text-to-image parts by name, as perception reads them: U-Net, autoencoder and the text tower of the words.

A folder of Stable Diffusion 1 or 2 as `StableDiffusionPipeline` saves it, or a painter of ours such as
`mini/diffusion`, whose decoupled attention to picture tokens is left out: words alone are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from tessera.adapt.class_vectors import class_vectors
from tessera.errors import CheckpointError, UserError
from tessera.models.diffusion.painter import CONSTANTS_FILE, load_parts
from tessera.models.diffusion.perception import PerceptionConfig, PerceptionModel
from tessera.zoo.foundation import read_part, read_tokenizer
from tessera.zoo.parts import autoencoder_of, locate, quiet

TEXT = "mini/clip"  # of painters of ours, which are saved without their text tower


@dataclass
class TextToImage:
    """Parts that belong together.

    Args:
        mean, spread: [Z], of the scaled latents that the U-Net was trained on.
    """

    unet: UNet2DConditionModel
    autoencoder: AutoencoderKL | AutoencoderTiny
    text: CLIPTextModel
    tokenizer: PreTrainedTokenizerFast
    mean: Tensor
    spread: Tensor

    def __post_init__(self) -> None:
        width = self.unet.config.cross_attention_dim
        if self.text.config.hidden_size != width:
            raise UserError(
                f"the text tower gives words {self.text.config.hidden_size} wide and the U-Net takes {width}; name the"
                " one that it was trained with, --parts text=FOLDER"
            )

    def perceiver(
        self, task: str, classes: Sequence[str] = (), vectors: Tensor | None = None, **fields: Any
    ) -> PerceptionModel:
        """A model with a new text adapter and head over these parts, which are its own from then on.

        Args:
            classes: of pixels for "segmentation", of pictures for "depth"; none for "referring".
            vectors: what `class_vectors` says of the classes, [K, D].
            fields: further fields of `PerceptionConfig`.

        Raises:
            UserError: as the configuration and the model.
        """
        places = dict(enumerate(classes))
        config = PerceptionConfig(
            task=task,  # type: ignore[arg-type]
            unet_config=_plain(self.unet), autoencoder_config=_plain(self.autoencoder),
            tower_config=self.text.config.to_diff_dict() if task == "referring" else None,
            id2label=places, label2id={name: place for place, name in places.items()}, **fields,
        )  # fmt: skip
        model = PerceptionModel(config, self.unet, self.autoencoder, self.text)
        model.autoencoder.mean.copy_(self.mean)
        model.autoencoder.spread.copy_(self.spread)
        if vectors is not None:
            model.class_vectors.copy_(vectors)
        return model

    def class_vectors(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        """As `tessera.adapt.class_vectors`; None where there is no class."""
        return class_vectors(self.tokenizer, self.text, classes, templates) if classes else None


def _plain(part: Any) -> dict[str, Any]:
    """A configuration of diffusers as JSON values, without what it writes beside the fields, and for a tiny
    autoencoder without an entry that it writes but refuses to read."""
    derived = ("block_out_channels",) if isinstance(part, AutoencoderTiny) else ()
    values = {name: value for name, value in part.config.items() if name[0] != "_" and name not in derived}
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {**kept, "_class_name": type(part).__name__}


def read_text_to_image(name: str, text: str | None = None, dtype: torch.dtype = torch.float32) -> TextToImage:
    """The parts of `name`, shipped or a folder.

    Args:
        text: the text tower with its tokenizer, by name or folder; by default those beside the U-Net, `text_encoder`
            and `tokenizer`, or for a painter of ours `TEXT`.

    Raises:
        UserError: an unknown mini part, or a text tower of another width.
        CheckpointError: a part is missing, damaged or pickled.
    """
    folder = Path(locate(name))
    with quiet():
        unet, autoencoder, _ = load_parts(folder, dtype, autoencoder_of(name))
        beside = text is None and (folder / "text_encoder").is_dir()
        where = Path(locate(text or TEXT))
        tower = read_part(CLIPTextModel, folder / "text_encoder" if beside else where, dtype)
        tokenizer = read_tokenizer(folder / "tokenizer" if beside else where)
    latents = autoencoder.config.latent_channels
    mean, spread = torch.zeros(latents), torch.ones(latents)
    if (folder / CONSTANTS_FILE).is_file():
        try:
            stored = load_file(folder / CONSTANTS_FILE)
            mean, spread = stored["latent_mean"], stored["latent_spread"]
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(f"{folder / CONSTANTS_FILE} is missing or damaged: {error}") from error
    return TextToImage(unet, autoencoder, tower.requires_grad_(False), tokenizer, mean, spread)
