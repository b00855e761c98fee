"""Recipe of `mini/lm`: a LLaMA of 4 layers that has read the words of the embedded worlds and seen no picture.

Where VL-GPT will meet a picture it meets a sketch, which tells in words what is where (`tessera.zoo.sketches`): so it
knows how answers follow from what is where, and scenes from sentences, before it learns to read and write pictures.

Shape legend: B rows of L positions; M sketches of Q places, each a distribution over W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tessera.data.loader import Loader
from tessera.data.mixture import Mixture
from tessera.data.packing import Batch, Packer, collate_rows
from tessera.data.sample import Sample, Text
from tessera.data.sequence import IGNORED, PLACE, SequenceBuilder
from tessera.data.source import Split
from tessera.data.tasks import INSTRUCTIONS, Mapped, chat, pair_order
from tessera.data.worlds import open_world
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import BadSample
from tessera.evaluate.intervals import Estimate, bootstrap_mean, proportion
from tessera.layers.attention import NAME as ATTENTION
from tessera.layers.masks import block_causal
from tessera.objectives.next_token import next_token
from tessera.objectives.routing import route
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.parts import load_tokenizer, write_tokenizer
from tessera.zoo.recipe import Recipe
from tessera.zoo.sketches import PLACES, foreseen, sketches, word_ids

ROWS, ROW_LENGTH = 8, 256
SCENES = 10_000_000  # so many that none is met twice
SHARES = {"caption": 1.0, "draw": 1.0, "question": 0.3, "edit": 0.2, "chat": 1.5}


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


def sources(split: Split) -> Mixture:
    """Scenes in sketches and words: pairs in both orders, pages, instructions and answers; and names of emoji."""
    scenes = ScenesWorld(train_pictures=SCENES)
    parts: list[tuple[Any, float]] = [
        (Mapped(scenes.source("pairs", split), pair_order), 1.0),
        (scenes.source("pages", split), 0.3),
        (Mapped(open_world("emoji").source("pairs", split), without_pictures), 0.1),
    ]
    for task, rows in INSTRUCTIONS.items():
        parts += [(Mapped(scenes.source(task, split), instruct), SHARES[name]) for name, instruct, _ in rows]
    return Mixture(parts)


@dataclass(frozen=True)
class Reader:
    """How packed rows of words and sketches are read, and what is learned of them.

    Args:
        words: the token of each word that sketches are made of, int64 [W].
        place: the token that stands for one place of a sketch.
    """

    words: Tensor
    place: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Reader:
        """The one that fits a tokenizer."""
        return cls(word_ids(tokenizer), tokenizer.get_vocab()[PLACE])

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Next-token cross-entropy, of words and of the distributions that sketches are made of."""
        assert isinstance(model, LlamaForCausalLM)
        told = sketches(batch.images)
        hidden = model.model(
            inputs_embeds=self.embed(model, batch, told), attention_mask=block_causal(batch.segment_ids),
            position_ids=batch.position_ids,
        ).last_hidden_state  # fmt: skip
        text, drawn = route(batch.labels, batch.visual_target, batch.segment_ids)
        words = next_token(model.lm_head(hidden[:, :-1][text]), batch.labels[:, 1:][text])
        logs = model.lm_head(hidden[:, :-1][drawn]).float().log_softmax(dim=-1)[:, self.words]
        slots = batch.input_ids == self.place
        learned = batch.visual_target[slots].view(-1, PLACES)[:, 0]
        written = [image for image, yes in zip(batch.images, learned, strict=True) if yes]
        truth = sketches(written, foreseen).flatten(0, 1)
        return {"words": tuple(words), "sketches": (-(truth * logs).sum(), len(logs))}  # type: ignore[dict-item]

    def embed(self, model: LlamaForCausalLM, batch: Batch, told: Tensor) -> Tensor:
        """Embeddings [B, L, d] of words, and of sketches `told` [M, Q, W] at their places. A sketch that is learned and
        ends its sequence is hidden, as VL-GPT hides pictures: told place by place, the rest would follow from it."""
        table = model.get_input_embeddings()
        slots = batch.input_ids == self.place
        last = slots & ~nn.functional.pad(slots[:, 1:], (0, 1))
        ends = nn.functional.pad(batch.input_ids[:, 2:], (0, 2)) == model.config.eos_token_id  # after [/IMG]
        seen = ~(batch.visual_target & ends)[last]
        shown = slots.masked_scatter(slots, seen.repeat_interleave(PLACES))
        words = table(batch.input_ids)
        return words.masked_scatter(shown[..., None], (told[seen] @ table(self.words)).to(words.dtype))  # autocast


def _loader(split: Split, seed: int, tokenizer: PreTrainedTokenizerFast) -> Loader[Batch]:
    builder = SequenceBuilder(tokenizer, PLACES, ROW_LENGTH)
    return Loader(sources(split), Packer(builder, ROWS, ROW_LENGTH), seed=seed)


def stage(seed: int, steps: int) -> Stage:
    """A new language model, and what it reads."""
    tokenizer = load_tokenizer("mini/tokenizer")
    return Stage(
        name="lm", model=LlamaForCausalLM(mini_config(tokenizer)), objective=Reader.of(tokenizer),
        loader=_loader("train", seed, tokenizer), steps=steps,
        optimiser=Optimiser(kind="muon", lr=1.5e-3),
    )  # fmt: skip


def save(model: nn.Module, folder: Path) -> None:
    """Weights in bf16, configuration and tokenizer, as `LlamaForCausalLM` publishes them."""
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[operator]
    write_tokenizer(folder)


@torch.no_grad()
def scores(folder: Path, batches: int = 32) -> dict[str, Estimate]:
    """Of held-out scenes: nats a token over rows, and answers about a sketch of which every word is foreseen."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=ATTENTION).eval()
    tokenizer = load_tokenizer(folder)
    reader = Reader.of(tokenizer)
    means = []
    for _, batch in zip(range(batches), _loader("heldout", 0, tokenizer), strict=False):
        total, count = reader(model, batch)["words"]
        means.append(float(total) / count)
    return {"held-out nats a token": bootstrap_mean(np.array(means)), "questions about a sketch": _asked(model, reader)}


def _asked(model: LlamaForCausalLM, reader: Reader, questions: int = 500) -> Estimate:
    """Held-out questions of which every word of the answer is the likeliest."""
    builder = SequenceBuilder(load_tokenizer("mini/tokenizer"), PLACES, ROW_LENGTH)
    source = Mapped(open_world("scenes").source("questions", "heldout"), chat)
    right = 0
    for index in range(questions):
        batch = collate_rows([[built := builder.build(source[index])]], len(built), 0)
        hidden = model.model(inputs_embeds=reader.embed(model, batch, sketches(batch.images))).last_hidden_state
        learned = batch.labels[0, 1:] != IGNORED
        right += bool((model.lm_head(hidden[0, :-1][learned]).argmax(-1) == batch.labels[0, 1:][learned]).all())
    return proportion(right, questions)


RECIPE = Recipe(
    name="lm", about="a LLaMA of 4 layers x 256 that has read of scenes in words and sketches", steps=10_000,
    stage=stage, save=save, scores=scores, gates={},
)  # fmt: skip
