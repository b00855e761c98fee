"""A language model with eyes of random weights, small enough for every test, with what it reads by."""

from __future__ import annotations

import numpy as np
from PIL import Image as PIL

from tessera.data.conversation import LLAVA
from tessera.data.images import Pixels
from tessera.vision_chat import VisionChat
from tests.data.tiny import tokenizer
from tests.models.lvlm_tiny import TEXT, tiny_model

CONTEXT = 600


def words():
    """The tiny tokenizer with LLaVA's template."""
    made = tokenizer()
    made.chat_template = LLAVA
    return made


def vision_chat(pixels: Pixels | None = None, needs_picture: bool = False, read=None, **fields) -> VisionChat:
    read = read or words()
    text = {**TEXT, "vocab_size": len(read), "max_position_embeddings": CONTEXT}
    text |= {"pad_token_id": read.pad_token_id, "bos_token_id": read.bos_token_id, "eos_token_id": read.eos_token_id}
    slot = read.convert_tokens_to_ids("<image>")
    model = tiny_model(text_config={"model_type": "llama", **text}, image_token_id=slot, **fields)
    return VisionChat(model, read, pixels or Pixels(16), needs_picture)


def noise(seed: int, width: int = 16, height: int = 16) -> PIL.Image:
    return PIL.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
