"""The folders of LLaVA and LLaVA-NeXT as transformers lays them out, read and written through its own classes, so that
every spelling of their names that transformers knows is known here too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

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
_KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    LlavaConfig.model_type: (LlavaConfig, LlavaForConditionalGeneration),
    LlavaNextConfig.model_type: (LlavaNextConfig, LlavaNextForConditionalGeneration),
}
TYPES = tuple(_KINDS)  # as config.json names them


def load_llava(folder: str | Path, dtype: torch.dtype = torch.float32, **fields: Any) -> LVLMForConditionalGeneration:
    """The model in a folder of `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`, in evaluation
    mode.

    Args:
        fields: those of `LVLMConfig` that the layout has no place for, such as a token reducer.

    Raises:
        CheckpointError: no such folder, damaged, pickled, or weights of another architecture, with the first five names
            that differ.
        UserError: its image encoder is none that a backbone can be made of, or its states are read otherwise than here.
    """
    kind = model_type(Path(folder))
    if kind not in _KINDS:
        raise CheckpointError(f"{folder} holds a {kind!r}, not a {' or '.join(repr(one) for one in _KINDS)}")
    theirs: Any = read_model(_KINDS[kind][1], folder, dtype, local_files_only=True, attn_implementation=ATTENTION)
    given = theirs.config
    vision = PublishedBackbone(PublishedVisionConfig(vision_config=given.vision_config), theirs.model.vision_tower)
    config = LVLMConfig(
        vision_config=vision.config,
        text_config=given.text_config,
        connector="mlp2x_gelu",
        connector_options={"bias": given.multimodal_projector_bias, "activation": given.projector_hidden_act},
        vision_feature_layer=given.vision_feature_layer,
        vision_feature_select_strategy=_strategy(given.vision_feature_select_strategy, vision),
        image_grid_pinpoints=getattr(given, "image_grid_pinpoints", None),
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
    model = LVLMForConditionalGeneration(config, vision, language, connector)
    if model.sheets is not None:
        model.sheets.newline = theirs.model.image_newline
    return model.eval()


def save_llava(model: LVLMForConditionalGeneration, folder: str | Path, **options: Any) -> None:
    """Write `model` so that `LlavaForConditionalGeneration.from_pretrained` reads it, or that of LLaVA-NeXT where it
    shows pictures on sheets.

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
    kind = LlavaConfig.model_type if ours.sheets is None else LlavaNextConfig.model_type
    layout, published = _KINDS[kind]
    first = connector.mlp.fc1
    given = layout(
        vision_config=vision.config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        image_seq_length=model.num_image_tokens(),
        projector_hidden_act=(config.connector_options or {}).get("activation", "gelu"),
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=published_strategy(model),
        multimodal_projector_bias=first.bias is not None,
        **({} if ours.sheets is None else {"image_grid_pinpoints": ours.sheets.pinpoints}),
    )
    with torch.device("meta"):
        theirs: Any = published(given)
    theirs.model.vision_tower = vision.vision
    theirs.model.language_model = ours.language_model.base_model
    theirs.lm_head = model.get_output_embeddings()
    for here, there in _LINEAR.items():
        setattr(theirs.model.multi_modal_projector, there, getattr(connector.mlp, here))
    if ours.sheets is not None:
        theirs.model.image_newline = ours.sheets.newline
    theirs.generation_config = model.generation_config
    theirs.save_pretrained(folder, **options)


def published_strategy(model: LVLMForConditionalGeneration) -> str:
    """`vision_feature_select_strategy` as transformers names it, whose "default" leaves the first state out."""
    ours: Any = model
    return ours.config.vision_feature_select_strategy if ours.vision.class_token else "full"


def _strategy(published: Any, vision: PublishedBackbone) -> Any:
    """And as it is named here: "default" is the grid. Raises UserError where the grid would lose a patch."""
    if vision.class_token:
        return published
    if published == "full":
        return "default"
    raise UserError(
        f"its {vision.config.vision_config.model_type} has no class token, so that vision_feature_select_strategy"
        f" {published!r} leaves out its first patch; set it to 'full' in config.json"
    )


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
