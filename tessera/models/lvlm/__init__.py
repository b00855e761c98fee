"""Language models with eyes: an image encoder, a connector and any causal language model."""

from tessera.models.lvlm.configuration import LVLMConfig
from tessera.models.lvlm.llava import load_llava, save_llava
from tessera.models.lvlm.modeling import LVLMForConditionalGeneration
from tessera.models.lvlm.outputs import LVLMOutput

__all__ = ["LVLMConfig", "LVLMForConditionalGeneration", "LVLMOutput", "load_llava", "save_llava"]
