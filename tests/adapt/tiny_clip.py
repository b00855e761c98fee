"""A CLIP of tiny random towers that the mini parts' tokenizer writes for."""

from __future__ import annotations

import torch
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

LAYERS = 3


def tiny(tokenizer: PreTrainedTokenizerFast, text_width: int = 16, vision_width: int = 24) -> CLIPModel:
    """A CLIP of three layers in each tower, its weights large enough to tell texts apart."""
    torch.manual_seed(0)
    both = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 32}
    text = {
        "hidden_size": text_width, "vocab_size": len(tokenizer), "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {"hidden_size": vision_width, "image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=both | text, vision_config=both | vision, projection_dim=64)).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return clip
