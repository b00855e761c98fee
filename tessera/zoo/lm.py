"""Recipe of `mini/lm`: a LLaMA of 4 layers that has read the words of the embedded worlds and seen no picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tessera.data.loader import Loader
from tessera.data.mixture import Mixture
from tessera.data.packing import Batch, Packer
from tessera.data.sample import Sample, Text
from tessera.data.sequence import SequenceBuilder
from tessera.data.tasks import INSTRUCTIONS, Mapped
from tessera.data.worlds import open_world
from tessera.errors import BadSample
from tessera.evaluate.intervals import Estimate, bootstrap_mean
from tessera.layers.attention import NAME as ATTENTION
from tessera.layers.masks import block_causal
from tessera.objectives.next_token import next_token
from tessera.objectives.routing import route
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.parts import load_tokenizer
from tessera.zoo.recipe import Recipe

ROWS, ROW_LENGTH = 16, 256


def mini_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """3.2 million parameters beside its two vocabulary matrices."""
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=1024, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, attn_implementation=ATTENTION,  # type: ignore[call-arg]
    )  # fmt: skip


def without_pictures(sample: Sample, rng: np.random.Generator) -> Sample:
    """The words of a sample, all learned: what a language model reads of the world."""
    words = tuple(Text(segment.text, role=segment.role) for segment in sample.segments if isinstance(segment, Text))
    if not words:
        raise BadSample("the sample has no words")
    return Sample(words, id=sample.id)


def text_sources(split: str) -> Mixture:
    """Words of both embedded worlds: captions, names, pages, and instructions with their answers."""
    scenes, emoji = open_world("scenes"), open_world("emoji")
    parts: list[tuple[Any, float]] = [
        (Mapped(scenes.source("pairs", split), without_pictures), 3.0),  # type: ignore[arg-type]
        (Mapped(emoji.source("pairs", split), without_pictures), 0.5),  # type: ignore[arg-type]
        (Mapped(scenes.source("pages", split), without_pictures), 1.0),  # type: ignore[arg-type]
    ]
    for task, rows in INSTRUCTIONS.items():
        if task in scenes.tasks:
            for _, instruct, share in rows:
                asked = Mapped(scenes.source(task, split), instruct)  # type: ignore[arg-type]
                parts.append((Mapped(asked, without_pictures), share))
    return Mixture(parts)


def loss(model: nn.Module, batch: Batch) -> dict[str, tuple[torch.Tensor, int]]:
    """Next-token cross-entropy of packed rows."""
    hidden = model.model(  # type: ignore[operator]
        batch.input_ids, attention_mask=block_causal(batch.segment_ids), position_ids=batch.position_ids
    ).last_hidden_state
    text = route(batch.labels, None, batch.segment_ids).text
    return {"text": tuple(next_token(model.lm_head(hidden[:, :-1][text]), batch.labels[:, 1:][text]))}  # type: ignore[operator, dict-item]


def _loader(split: str, seed: int, tokenizer: PreTrainedTokenizerFast) -> Loader[Batch]:
    return Loader(text_sources(split), Packer(SequenceBuilder(tokenizer, 0, ROW_LENGTH), ROWS, ROW_LENGTH), seed=seed)


def stage(seed: int, steps: int) -> Stage:
    """A new language model, and the words it reads."""
    tokenizer = load_tokenizer("mini/tokenizer")
    return Stage(
        name="lm", model=LlamaForCausalLM(mini_config(tokenizer)), objective=loss,
        loader=_loader("train", seed, tokenizer), steps=steps,
        optimiser=Optimiser(kind="muon", lr=1.5e-3),
    )  # fmt: skip


def save(model: nn.Module, folder: Path) -> None:
    """Weights in bf16, configuration and tokenizer, as `LlamaForCausalLM` publishes them."""
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[operator]
    load_tokenizer("mini/tokenizer").save_pretrained(folder)


@torch.no_grad()
def scores(folder: Path, batches: int = 16) -> dict[str, Estimate]:
    """Cross-entropy of held-out words in nats a token, over rows."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=ATTENTION).eval()
    means = []
    for _, batch in zip(range(batches), _loader("heldout", 0, load_tokenizer(folder)), strict=False):
        total, count = loss(model, batch)["text"]
        means.append(float(total) / count)
    return {"held-out nats a token": bootstrap_mean(np.array(means))}


RECIPE = Recipe(
    name="lm", about="a LLaMA of 4 layers x 256 that has read the worlds' sentences", steps=1200,
    stage=stage, save=save, scores=scores, gates={},
)  # fmt: skip
