"""The folder of LLaVA as transformers lays it out, read and written through its own class, so that every spelling of
its names that transformers knows is known here too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from tessera.connect.connectors import TwoLayers
from tessera.connect.registry import create
from tessera.errors import CheckpointError, UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.models.adapters import refuse_adapters
from tessera.models.lvlm.configuration import LVLMConfig
from tessera.models.lvlm.modeling import LVLMForConditionalGeneration
from tessera.vision.hf import PublishedBackbone, PublishedVisionConfig
from tessera.weights import model_type, read_model

_LINEAR = {"fc1": "linear_1", "fc2": "linear_2"}


def load_llava(folder: str | Path, dtype: torch.dtype = torch.float32, **fields: Any) -> LVLMForConditionalGeneration:
    """The model in a folder of `LlavaForConditionalGeneration`, in evaluation mode.

    Args:
        fields: those of `LVLMConfig` that the layout has no place for, such as a token reducer.

    Raises:
        CheckpointError: no such folder, damaged, pickled, or weights of another architecture, with the first five names
            that differ.
        UserError: its image encoder is none that a backbone can be made of.
    """
    if (kind := model_type(Path(folder))) != LlavaConfig.model_type:
        raise CheckpointError(f"{folder} holds a {kind!r}, not a {LlavaConfig.model_type!r}")
    theirs: Any = read_model(
        LlavaForConditionalGeneration, folder, dtype, local_files_only=True, attn_implementation=ATTENTION
    )
    given = theirs.config
    vision = PublishedBackbone(PublishedVisionConfig(vision_config=given.vision_config), theirs.model.vision_tower)
    config = LVLMConfig(
        vision_config=vision.config,
        text_config=given.text_config,
        connector="mlp2x_gelu",
        connector_options={"bias": given.multimodal_projector_bias, "activation": given.projector_hidden_act},
        vision_feature_layer=given.vision_feature_layer,
        vision_feature_select_strategy=given.vision_feature_select_strategy,
        image_token_id=given.image_token_index,
        **fields,
    )
    with torch.device("meta"):
        language: Any = AutoModelForCausalLM.from_config(given.text_config)
        connector: Any = create(
            config.connector, theirs.model.multi_modal_projector.linear_1.in_features, given.text_config.hidden_size,
            **(config.connector_options or {}),
        )  # fmt: skip
    setattr(language, language.base_model_prefix, theirs.model.language_model)
    language.set_output_embeddings(theirs.lm_head)
    for ours, other in _LINEAR.items():
        setattr(connector.mlp, ours, getattr(theirs.model.multi_modal_projector, other))
    if theirs.generation_config is not None:
        language.generation_config = theirs.generation_config
    return LVLMForConditionalGeneration(config, vision, language, connector).eval()


def save_llava(model: LVLMForConditionalGeneration, folder: str | Path, **options: Any) -> None:
    """Write `model` so that `LlavaForConditionalGeneration.from_pretrained` reads it.

    Args:
        options: further arguments of `save_pretrained`.

    Raises:
        UserError: LLaVA's layout has no place for a part of it, or adapters are not merged yet.
    """
    ours: Any = model
    config, connector, vision = ours.config, ours.connector, ours.vision
    refuse_adapters(model)
    if what := misfit(model):
        raise UserError(f"LLaVA's layout has no place for {what}")
    first = connector.mlp.fc1
    given = LlavaConfig(
        vision_config=vision.config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        image_seq_length=model.num_image_tokens(),
        projector_hidden_act=(config.connector_options or {}).get("activation", "gelu"),
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        multimodal_projector_bias=first.bias is not None,
    )
    with torch.device("meta"):
        theirs: Any = LlavaForConditionalGeneration(given)
    theirs.model.vision_tower = vision.vision
    theirs.model.language_model = ours.language_model.base_model
    theirs.lm_head = model.get_output_embeddings()
    for here, there in _LINEAR.items():
        setattr(theirs.model.multi_modal_projector, there, getattr(connector.mlp, here))
    theirs.generation_config = model.generation_config
    theirs.save_pretrained(folder, **options)


def misfit(model: LVLMForConditionalGeneration) -> str | None:
    """The first part of `model` that LLaVA's layout has no place for; None where all of it fits."""
    config: Any = model.config
    head = model.get_output_embeddings()
    vocabulary = config.text_config.vocab_size
    failing = {
        f"the connector {config.connector}, where it has mlp2x_gelu": type(model.connector) is not TwoLayers,
        f"a {type(model.vision).__name__} as encoder, where it has one of transformers": (
            not isinstance(model.vision, PublishedBackbone)
        ),
        "the encoder's final tokens; set vision_feature_layer": config.vision_feature_layer is None,
        "the class token alone; read 'default' or 'full'": config.vision_feature_select_strategy == "class",
        f"the token reducer {config.reducer!r}; save_pretrained keeps it": config.reducer is not None,
        "a head with a bias": getattr(head, "bias", None) is not None,
        f"an image token with id {config.image_token_id} outside the vocabulary of {vocabulary} entries; grow it with"
        f" resize_token_embeddings({config.image_token_id + 1})": config.image_token_id >= vocabulary,
    }
    return next((what for what, wrong in failing.items() if wrong), None)
