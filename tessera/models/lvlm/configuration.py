"""Configuration of a language model with eyes. The defaults are LLaVA-1.5-7B as transformers publishes it."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.models.lvlm.slot import Slot
from tessera.reduce.registry import create
from tessera.vision.registry import import_architectures

import_architectures()  # so that a folder with any of them inside can be read

_CLIP_LARGE_336 = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14, "image_size": 336, "projection_dim": 768,
}  # fmt: skip
_VICUNA_7B = {"vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}


@strict
class LVLMConfig(PreTrainedConfig):
    """An image encoder, a connector and a causal language model.

    Args:
        vision_config: any backbone of `tessera.vision`, by default CLIP ViT-L/14 at 336 pixels.
        text_config: any causal language model of transformers, by default Vicuna-7B with the image token.
        connector: a name in `tessera.connect.registry`.
        connector_options: that connector's own options.
        vision_feature_layer: whose states are read, as transformers counts them: k is the state after block k, -1 the
            last one. A list is read side by side. None reads the encoder's final tokens, after its last norm.
        vision_feature_select_strategy: "default" reads the grid without the class token, "full" with it, "class" the
            class token alone.
        reducer: a name of `tessera.reduce` that leaves fewer of the grid's tokens; a class token that is read with them
            stays.
        reducer_options: of it.
        keep_side, keep_ratio, keep_tokens: see `Slot`; one of them, with a reducer.
        reduce_after: how many layers of the language model read all tokens, before the reducer, see `Inside`. None puts
            it between encoder and connector, where it looks at the tokens alone, so that it cannot be one that chooses
            by importance.
        image_grid_pinpoints: height and width in pixels of the sheets of tiles that show pictures of any shape, as
            LLaVA-NeXT has them; see `Sheets`. None shows the whole picture alone.
        image_token_id: stands in `input_ids` where a token of a picture goes; it may lie outside the vocabulary, and
            is never generated.
    """

    model_type = "tessera-lvlm"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="tessera-published-vision",
            init_kwargs={"vision_config": _CLIP_LARGE_336},
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=_VICUNA_7B),
    }

    vision_config: Any = None  # a configuration or its dictionary, as the next
    text_config: Any = None
    connector: str = "mlp2x_gelu"
    connector_options: dict[str, Any] | None = None
    vision_feature_layer: int | list[int] | None = -2
    vision_feature_select_strategy: Literal["default", "full", "class"] = "default"
    reducer: str | None = None
    reducer_options: dict[str, Any] | None = None
    keep_side: int | None = None
    keep_ratio: float | int | None = None
    keep_tokens: int | None = None
    reduce_after: int | None = None
    image_grid_pinpoints: list[list[int]] | None = None
    image_token_id: int = 32000

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        if self.image_token_id < 0:
            raise UserError(f"image_token_id is {self.image_token_id}; an id is 0 or more")
        if self.vision_feature_layer == [] or 0 in self.vision_feature_layers:
            raise UserError(
                f"vision_feature_layer is {self.vision_feature_layer}; blocks count from 1, or from -1 backwards, and"
                " at least one is read"
            )
        if self.image_grid_pinpoints is not None and (
            self.reducer is not None or self.vision_feature_select_strategy != "default"
        ):
            raise UserError(
                "sheets of tiles (image_grid_pinpoints) are made of the whole grid of each tile; leave out the reducer,"
                " and read 'default'"
            )
        if self.slot() is not None and self.vision_feature_select_strategy == "class":
            raise UserError(
                "the class token alone is one token, which no reducer makes fewer; read 'default' or 'full'"
            )

    def slot(self) -> Slot | None:
        """The reducer and what it leaves, wherever it stands.

        Raises:
            UserError: there is no such reducer, an option or a number that it refuses, or one of them without it.
        """
        if self.reducer is not None:
            reducer = create(self.reducer, **self.reducer_options or {})
            return Slot(reducer=reducer, side=self.keep_side, ratio=self.keep_ratio, tokens=self.keep_tokens)
        if self.reducer_options or {self.keep_side, self.keep_ratio, self.keep_tokens} != {None}:
            raise UserError("reducer names none, and its options or how many tokens it keeps are given; name it too")
        if self.reduce_after is not None:
            raise UserError(f"reduce_after is {self.reduce_after}, and reducer names none; name it too")
        return None

    @property
    def vision_feature_layers(self) -> list[int]:
        """The layers that are read; none where the final tokens are."""
        layers = self.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers or [])

    @property
    def context(self) -> int | None:
        """Positions that the language model reads, or None where it sets no limit."""
        return getattr(self.text_config, "max_position_embeddings", None)


AutoConfig.register(LVLMConfig.model_type, LVLMConfig)
