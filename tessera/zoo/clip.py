"""Recipe of `mini/clip`: a CLIP whose patches know shapes and textures.

Contrast alone learns colour, place and number and never needs shape: those already tell 64 sentences apart. Three
additions make patches say what they show, and only CLIP itself is kept:
    * a hard negative for each caption, wrong in one word;
    * a captioning head: text states read the patches and guess the next word;
    * a region head: each patch names colour, shape, size and texture of the object that covers it.

Shape legend: B pictures, P = 64 patches, L = 40 words, C = width of both towers.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from tessera.data.sequence import IGNORED
from tessera.evaluate.intervals import Estimate
from tessera.evaluate.retrieval import recall
from tessera.objectives.contrastive import contrastive
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.clip_data import ATTRIBUTES, canonical, encode, feed, heldout_pool, patch_probes
from tessera.zoo.parts import load_tokenizer, write_tokenizer
from tessera.zoo.pictures import to_pixel_values
from tessera.zoo.recipe import Recipe

TEXT_POSITIONS = 40
CLASSES = [len(names) + 1 for names in ATTRIBUTES.values()]  # the last one of each is the background


def mini_config(tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    """Two towers of width 192: five layers over 8-pixel patches, three over words."""
    tower = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "hidden_act": "gelu"}
    text = {
        "num_hidden_layers": 3,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": 192,
    }
    vision = {"num_hidden_layers": 5, "image_size": 64, "patch_size": 8, "projection_dim": 192}
    return CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=192)


class ClipPretraining(nn.Module):
    """CLIP with the two heads that teach it and are thrown away."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.clip = CLIPModel(config)
        vision, text = self.clip.vision_model.config, self.clip.text_model.config
        width, vocabulary = vision.hidden_size, text.vocab_size
        self.captioner = nn.TransformerDecoderLayer(
            width, width // 64, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.words = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))
        self.regions = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(CLASSES)))
        self.words.no_muon = self.regions.no_muon = True  # type: ignore[assignment]
        self._start_lossless()

    def _start_lossless(self) -> None:
        """Start the patch embedding as an orthonormal map, so that no detail of a patch is lost at the outset."""
        embeddings = self.clip.vision_model.embeddings
        nn.init.orthogonal_(embeddings.patch_embedding.weight.data.flatten(1))
        nn.init.normal_(embeddings.position_embedding.weight, std=0.3)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
        """Sums and counts of the three losses.

        Args:
            batch: pixel_values float [B, 3, 64, 64]; captions int [B + W, L], the right ones, then W wrong ones (each
                of one of the pictures); regions int [B, 4, P].
        """
        size = len(batch["pixel_values"])
        patches = self.clip.vision_model(batch["pixel_values"])
        texts = self.clip.text_model(batch["captions"])
        shared = self.clip.text_projection(texts.pooler_output)
        scale = self.clip.logit_scale.clamp(max=math.log(100.0)).exp()
        aligned = contrastive(self.clip.visual_projection(patches.pooler_output), shared[:size], scale, shared[size:])
        states = patches.last_hidden_state[:, 1:]
        return {
            "contrastive": (aligned, size),
            "caption": self._caption_loss(texts.last_hidden_state[:size], patches.last_hidden_state, batch),
            "regions": self._region_loss(states, batch["regions"]),
        }

    def _caption_loss(self, words: Tensor, patches: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        tokens = batch["captions"][: len(words)]
        pad = self.clip.text_model.config.pad_token_id
        causal = nn.Transformer.generate_square_subsequent_mask(words.shape[1], device=words.device)
        states = self.captioner(words, patches, tgt_mask=causal, tgt_is_causal=True)[:, :-1]
        learned = tokens[:, 1:].ne(pad)
        loss = F.cross_entropy(self.words(states[learned]), tokens[:, 1:][learned], reduction="sum")
        return loss, int(learned.sum())

    def _region_loss(self, patches: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        parts = self.regions(patches).split(CLASSES, dim=-1)
        loss = patches.new_zeros(())
        for row, logits in enumerate(parts):
            loss = loss + F.cross_entropy(
                logits.flatten(0, 1), labels[:, row].flatten(), ignore_index=IGNORED, reduction="sum"
            )
        return loss, max(1, int((labels[:, 0] != IGNORED).sum()))


def stage(seed: int, steps: int) -> Stage:
    """A new CLIP with its teaching heads, and what it looks at."""
    tokenizer = load_tokenizer("mini/tokenizer")
    return Stage(
        name="clip",
        model=ClipPretraining(mini_config(tokenizer)),
        objective=lambda model, batch: model.losses(batch),  # type: ignore[operator]
        loader=feed(tokenizer, TEXT_POSITIONS, seed),
        steps=steps,
        optimiser=Optimiser(kind="muon", lr=8e-4, betas=(0.9, 0.98), weight_decay=0.02, warmup=0.1),
    )


def save(model: nn.Module, folder: Path) -> None:
    """CLIP alone, in bf16, with its tokenizer and image processor."""
    model.clip.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[union-attr, operator]
    write_tokenizer(folder)
    side = {"height": 64, "width": 64}
    CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=side).save_pretrained(folder)


@torch.no_grad()
def _patches(clip: CLIPModel, pictures: np.ndarray) -> np.ndarray:
    """Patches of the last hidden state, float [n, P, C]."""
    parts = np.array_split(pictures, max(1, len(pictures) // 100))
    found = [clip.vision_model(to_pixel_values(part)).last_hidden_state[:, 1:] for part in parts]
    return torch.cat(found).numpy()


@torch.no_grad()
def scores(folder: Path) -> dict[str, Estimate]:
    """Linear probes of one-object held-out combinations, and retrieval among 500 held-out pictures."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    found = patch_probes(partial(_patches, clip))
    pool = heldout_pool(500)
    words = encode(tokenizer, canonical(pool.scenes), TEXT_POSITIONS)
    texts = clip.text_projection(clip.text_model(words).pooler_output)
    images = clip.visual_projection(clip.vision_model(to_pixel_values(pool.pictures)).pooler_output)
    found["image to text recall@1 of 500"] = recall(images.numpy(), texts.numpy(), 1)
    return found


RECIPE = Recipe(
    name="clip", about="a CLIP of two small towers whose patches know shapes and textures", steps=900,
    stage=stage, save=save, scores=scores,
    gates={f"probe {attribute}": 0.95 for attribute in ("shape", "colour", "place")},
)  # fmt: skip
