"""How an image encoder and any causal language model are put together: what models with both as parts share."""

from __future__ import annotations

from typing import Any, Self

from transformers import AutoModel, GenerationMixin, PreTrainedModel

from tessera.models.around import AroundLanguageModel
from tessera.models.lvlm.language import new_language_model, own_attention, read_language_model
from tessera.vision.base import VisionBackbone
from tessera.vision.registry import create


class SeeingLanguageModel(AroundLanguageModel, GenerationMixin):
    """An image encoder `vision` and a causal language model `language_model`, of a configuration with `vision_config`
    and `text_config`; a class between them adds what connects the two and then calls `post_init`.

    Args:
        vision, language_model: ready parts, taken as they are with their weights; by default made from the
            configuration.
    """

    _skip_keys_device_placement = ["past_key_values"]

    def __init__(
        self, config: Any, vision: VisionBackbone | None = None, language_model: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        self.vision: VisionBackbone = AutoModel.from_config(config.vision_config) if vision is None else vision
        self.language_model = new_language_model(config.text_config) if language_model is None else language_model
        config.text_config = self.language_model.config  # one object, so that resizing the vocabulary reaches both
        if language_model is not None and language_model.generation_config is not None:
            self.generation_config = language_model.generation_config

    @classmethod
    def from_parts(cls, vision: str | VisionBackbone, language_model: str | PreTrainedModel, **fields: Any) -> Self:
        """New parts between an encoder and a language model.

        Args:
            vision: a name or a folder for `tessera.vision.registry.create`, or a ready backbone.
            language_model: a folder of a causal language model of transformers, or a ready one.
            fields: those of the configuration.

        Raises:
            UserError: a name or an option that does not exist, or values that do not suit the parts.
            CheckpointError: a folder that holds no such part, or a damaged one.
        """
        eyes = create(vision) if isinstance(vision, str) else vision
        words = read_language_model(language_model) if isinstance(language_model, str) else language_model
        kind: Any = cls.config_class
        with own_attention(words):
            config = kind(vision_config=eyes.config, text_config=words.config, **fields)
        return cls(config, eyes, words)
