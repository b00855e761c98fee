"""Configurations of VL-GPT. The defaults are the published size; what the paper leaves open is marked
(open)."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are
# strings.
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION

CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}


def _at_least_one(config: PreTrainedConfig, *names: str) -> None:
    """Raise UserError where a field is below 1."""
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise UserError(f"{name} is {value}; it is at least 1")


@strict
class CausalTokenizerConfig(PreTrainedConfig):
    """The image tokenizer and detokenizer over a frozen vision encoder.

    Args:
        vision_config: a CLIP vision encoder, ViT-L/14 by default.
        vision_layer: which of its hidden states is read, as an index into `hidden_states` (open); several are read
            side by side.
        keep_class_token: whether the class token is read beside the patches (open).
        num_embeddings: N, visual embeddings a picture.
        embed_width: d, the width of the language model.
        width, depth, heads, mlp_width: size of both decoder stacks (open; pre-norm, GELU, biases).
        query_std: learned queries start from N(0, query_std) (open).
        image_condition: what z_v estimates (open): "resampled", the tokens that the U-Net reads, or
            "encoder", the image encoder's features before the resampler, which the painter must then run.
        image_condition_tokens, image_condition_width: Q and Dv.
        text_condition_tokens, text_condition_width: T and Dt; all T positions are regressed (open).
        image_weight, text_weight: lambda 1 and lambda 2. At 0 that target is never computed.
    """

    model_type = "tessera_causal_tokenizer"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=CLIPVisionConfig, init_kwargs=CLIP_LARGE),
    }

    vision_config: Any = None  # a configuration or its dictionary
    vision_layer: int | list[int] = -1
    keep_class_token: bool = True
    num_embeddings: int = 32
    embed_width: int = 4096
    width: int = 1024
    depth: int = 12
    heads: int = 16
    mlp_width: int = 4096
    query_std: float = 0.02
    image_condition: Literal["resampled", "encoder"] = "resampled"
    image_condition_tokens: int = 16
    image_condition_width: int = 768
    text_condition_tokens: int = 77
    text_condition_width: int = 768
    image_weight: float = 1.0
    text_weight: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        _at_least_one(
            self, "num_embeddings", "embed_width", "width", "depth", "heads", "mlp_width", "image_condition_tokens",
            "image_condition_width", "text_condition_tokens", "text_condition_width",
        )  # fmt: skip
        if self.width % self.heads:
            raise UserError(f"a width of {self.width} does not divide into {self.heads} heads; change one of them")

    @property
    def vision_layers(self) -> list[int]:
        """`vision_layer` as a list."""
        return [self.vision_layer] if isinstance(self.vision_layer, int) else self.vision_layer


@strict
class VLGPTConfig(PreTrainedConfig):
    """VL-GPT: language model, image tokenizer and how they meet.

    Args:
        text_config: the language model, LLaMA-7B by default.
        tokenizer_config: the image tokenizer and detokenizer.
        image_start_id, image_end_id: the entries [IMG] and [/IMG].
        image_placeholder_id: stands in `input_ids` where a visual embedding goes; never predicted.
        image_token_rows: "separate" keeps the embedding and output rows of [IMG] and [/IMG] as small
            parameters of their own, so that they train while the language model stays frozen; their ids may
            be the next two after the vocabulary. "shared" takes them from the language model's own matrices
            (open).
        visual_loss_weight: weight of the mean squared error against the cross-entropy (open).
        standardise: "none", "global" (one number for all channels), "channel", or "conditions" (directions by what
            the detokenizer reads from them for the image condition): a fixed scaling of the embeddings between
            tokenizer and language model, set by `fit_standardisation`, undone before the detokenizer (open).
        visual_input_dropout: share of the learned pictures at the end of their sequence whose embeddings training hides
            from the language model behind learned ones, so that it predicts them from what was said and not from their
            own beginning. Above 0, generation too reads a picture only when it is whole (not in the paper; 0 as
            published).
        visual_projector: "none", as published: the language model reads visual embeddings as it predicts them; "mlp":
            it reads them through two layers.
        regression_head: "linear", as published, or "residual": see `ResidualHead`; one layer cannot say outlines.
        force_image_end: generation appends [/IMG] after the last embedding instead of asking the head (open).
        lora_rank, lora_alpha, lora_dropout: adapters of stages B and C (alpha and dropout open).
        draw_steps, draw_guidance: how the frozen diffusion model is sampled (open).
    """

    model_type = "tessera_vlgpt"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=LlamaConfig),
        "tokenizer_config": SubConfigSpec(config_class=CausalTokenizerConfig),
    }

    text_config: Any = None  # a configuration or its dictionary, as the next
    tokenizer_config: Any = None
    image_start_id: int = 32000
    image_end_id: int = 32001
    image_placeholder_id: int = 32002
    image_token_rows: Literal["separate", "shared"] = "separate"
    visual_loss_weight: float = 1.0
    standardise: Literal["none", "global", "channel", "conditions"] = "none"
    visual_input_dropout: float = 0.0
    visual_projector: Literal["none", "mlp"] = "none"
    regression_head: Literal["linear", "residual"] = "linear"
    force_image_end: bool = True
    lora_rank: int = 32
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    draw_steps: int = 50
    draw_guidance: float = 7.5

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        _at_least_one(self, "lora_rank", "draw_steps")
        if not 0 <= self.visual_input_dropout <= 1:
            raise UserError(f"visual_input_dropout is {self.visual_input_dropout}; it is a share from 0 to 1")

    @property
    def vision_config(self) -> PreTrainedConfig:
        """The frozen vision encoder inside the image tokenizer."""
        return self.tokenizer_config.vision_config

    @property
    def num_image_positions(self) -> int:
        """N, placeholders a picture. With [IMG] and [/IMG] a picture costs N + 2 positions."""
        return self.tokenizer_config.num_embeddings


for _config in (CausalTokenizerConfig, VLGPTConfig):
    AutoConfig.register(_config.model_type, _config)
