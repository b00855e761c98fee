"""A CLIP of twelve narrow layers in each tower, with prompts, whose values follow from a formula.

The official code is not here. `maple_golden.json` holds the logits that muzairkhattak/multimodal-prompt-learning
(commit 69bce21ae8: trainers/maple.py and trainers/independentVL.py over clip/model.py) gives for these weights, copied
into it, and these pictures. There, casts to half precision are left out, the widths 512 and 768 that it takes for
granted are those here, and the end of a sentence, which it knows by the largest id, has that.
"""

from __future__ import annotations

from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from tessera.adapt.prompted_clip import PromptedCLIP
from tessera.adapt.prompts import Prompts
from tests.formula import fill, values

LAYERS, LONGEST = 12, 24
CLASSES = ["red circle", "blue_star", "a small green cross"]
PROMPTS = {
    **{f"maple {depth}": Prompts(text=2, text_depth=depth, vision=2, vision_depth=depth, coupling="each")
       for depth in (1, 3, 9, 12)},
    "ivlp": Prompts(text=2, text_depth=12, vision=2, vision_depth=12),
}  # fmt: skip


def clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Two heads in each tower, four patches in a picture."""
    both = {"num_hidden_layers": LAYERS, "num_attention_heads": 2}
    text = {
        "hidden_size": 64, "intermediate_size": 256, "vocab_size": len(tokenizer), "max_position_embeddings": LONGEST,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {"hidden_size": 128, "intermediate_size": 512, "image_size": 32, "patch_size": 16}
    return fill(CLIPModel(CLIPConfig(text_config=both | text, vision_config=both | vision, projection_dim=32)))


def prompted(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, name: str) -> PromptedCLIP:
    """One of PROMPTS over it."""
    made = PromptedCLIP.over(clip, tokenizer, CLASSES, PROMPTS[name])
    fill(made.learner)
    return made.eval()


def pictures() -> Tensor:
    """Two of noise."""
    return values("pictures", (2, 3, 32, 32), 1.0)
