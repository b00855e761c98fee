"""VL-GPT: one causal transformer over words and pictures (arXiv 2312.09251)."""

from tessera.models.adapters import has_adapters, merge_adapters
from tessera.models.vlgpt.adapters import LORA_TARGETS, add_adapters, lora_config
from tessera.models.vlgpt.configuration import CausalTokenizerConfig, VLGPTConfig
from tessera.models.vlgpt.image_tokenizer import CausalTokenizerModel
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.models.vlgpt.outputs import TokenizerOutput, VLGPTOutput
from tessera.models.vlgpt.sizes import component_sizes

__all__ = [
    "LORA_TARGETS",
    "CausalTokenizerConfig",
    "CausalTokenizerModel",
    "TokenizerOutput",
    "VLGPTConfig",
    "VLGPTForConditionalGeneration",
    "VLGPTOutput",
    "add_adapters",
    "component_sizes",
    "has_adapters",
    "lora_config",
    "merge_adapters",
]
