"""Image tokenizers with a codebook."""

from tessera.models.vq.configuration import VQConfig
from tessera.models.vq.modeling import VQOutput, VQTokenizer

__all__ = ["VQConfig", "VQOutput", "VQTokenizer"]
