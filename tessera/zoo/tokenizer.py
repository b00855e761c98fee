"""The byte-level BPE tokenizer that all mini parts share, trained on the sentences of the embedded worlds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tessera.data.worlds import open_world
from tessera.data.worlds.scenes.captions import Style, caption
from tessera.data.worlds.scenes.graph import random_scene

PAD, BOS, IMAGE_START, EOS, IMAGE_END, IMAGE = "<pad>", "<s>", "[IMG]", "</s>", "[/IMG]", "<image>"
# The end mark must not have id 2: transformers' CLIP reads 2 as a sign of its oldest checkpoints and pools elsewhere.
SPECIAL = (PAD, BOS, IMAGE_START, EOS, IMAGE_END, IMAGE)
_STYLES: tuple[Style, ...] = ("short", "dense", "relational", "canonical")


def corpus(scenes: int = 20_000, seed: int = 5) -> list[str]:
    """Sentences to learn pieces from: captions of drawn scenes, names of emoji, and the phrases of dialogues."""
    sentences = []
    for index in range(scenes):
        rng = np.random.default_rng([seed, index])
        scene = random_scene(rng)
        sentences.append(caption(scene, rng, _STYLES[index % len(_STYLES)]))
    for one in open_world("emoji").emoji:  # type: ignore[attr-defined]
        sentences += list(one.names("en")) * 6
    phrases = (Path(__file__).parent / "phrases.txt").read_text(encoding="utf-8").splitlines()
    return sentences + phrases * 60 + [phrase.capitalize() for phrase in phrases] * 10


def train_tokenizer(sentences: Iterable[str], vocabulary: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocabulary` entries; any string encodes, unknown words as several pieces.

    Encoding with special tokens gives `<s> words </s>`, as CLIP's text tower expects.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    begin, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, begin), (EOS, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[IMAGE_START, IMAGE_END, IMAGE],
        clean_up_tokenization_spaces=False,
    )
