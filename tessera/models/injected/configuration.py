"""Configuration of a language model with injected class tokens. The defaults are eP-ALM with OPT-2.7B and ViT-B/16."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.vision.registry import import_architectures

import_architectures()  # so that a folder with any of them inside can be read

OPT = {
    "opt-350m": {
        "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "word_embed_proj_dim": 512, "do_layer_norm_before": False,
    },
    "opt-2.7b": {
        "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
        "word_embed_proj_dim": 2560,
    },
    "opt-6.7b": {
        "hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32, "num_attention_heads": 32,
        "word_embed_proj_dim": 4096,
    },
}  # fmt: skip


@strict
class InjectedLMConfig(PreTrainedConfig):
    """An image encoder and a causal language model, both frozen, and what is trained between them.

    Args:
        vision_config: any backbone of `tessera.vision` with a class token.
        text_config: any causal language model of transformers that is told the positions of its words.
        levels: K, how many of the encoder's last blocks give their class token; with 0 no picture is seen.
        start, end: decoder layers start .. end - 1, counted from 0, begin with the token; each of the K class tokens
            serves (end - start) // K of them, the last one also those that are left over.
        shared_connector: one linear layer for all K class tokens, not one each.
        prompt_length: P, learned tokens before the words.
        prompt_mlp: whether the prompt goes through two linear layers with a tanh between.
        attention: what the injected token reads. "causal": itself and the prompt. "faithful": everything, as in the
            official code, where it carries later words to earlier ones through the layers after `end`: for comparison
            with that code alone.
        ask: how a question is written, {} for its words; the answer follows.
        image_mean, image_std: of each channel, as the encoder expects pictures.

    Raises:
        UserError: values that do not go together.
    """

    model_type = "tessera-injected-lm"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="tessera-vit"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="opt", init_kwargs=OPT["opt-2.7b"]),
    }

    vision_config: Any = None  # a configuration or its dictionary, as the next
    text_config: Any = None
    levels: int = 6
    start: int = 19
    end: int = 31
    shared_connector: bool = False
    prompt_length: int = 10
    prompt_mlp: bool = True
    attention: Literal["causal", "faithful"] = "causal"
    ask: str = "{}</a>"
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        layers = self.text_config.num_hidden_layers
        if not 0 <= self.start < self.end <= layers:
            raise UserError(
                f"start {self.start} and end {self.end} name no layers of a language model with {layers}; 0 <= start <"
                f" end <= {layers}"
            )
        if not 0 <= self.levels <= self.end - self.start:
            raise UserError(
                f"levels is {self.levels}, but {self.end - self.start} layers take a class token; give 0 to"
                f" {self.end - self.start}"
            )
        if self.prompt_length < 0:
            raise UserError(f"prompt_length is {self.prompt_length}; it is 0 or more")
        if self.ask.count("{}") != 1:
            raise UserError(f"ask is {self.ask!r}; it holds {{}} once, where the question goes")

    @property
    def context(self) -> int | None:
        """Words that the language model reads, or None where it sets no limit; prompt and token take no position."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def leaks(self) -> bool:
        """Whether a word can learn of later ones: the token has read them and some layer does not reset it."""
        return self.attention == "faithful" and self.end < self.text_config.num_hidden_layers

    def level(self, layer: int) -> int:
        """Which of the K class tokens, 0 the shallowest, stands before `layer`, one of start .. end - 1."""
        step = (self.end - self.start) // self.levels
        return min((layer - self.start) // step, self.levels - 1)


AutoConfig.register(InjectedLMConfig.model_type, InjectedLMConfig)
