"""VL-GPT: one causal transformer over words and pictures (arXiv 2312.09251)."""

from tessera.models.vlgpt.configuration import CausalTokenizerConfig, VLGPTConfig
from tessera.models.vlgpt.image_tokenizer import CausalTokenizerModel
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.models.vlgpt.outputs import TokenizerOutput, VLGPTOutput
from tessera.models.vlgpt.sizes import LORA_TARGETS, component_sizes, lora_config

__all__ = [
    "LORA_TARGETS",
    "CausalTokenizerConfig",
    "CausalTokenizerModel",
    "TokenizerOutput",
    "VLGPTConfig",
    "VLGPTForConditionalGeneration",
    "VLGPTOutput",
    "component_sizes",
    "lora_config",
]
