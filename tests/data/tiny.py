"""A tiny tokenizer, tiny sources and tiny files for the tests of what reads them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image as PIL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tessera.data.sample import Image, Sample, pair
from tessera.errors import BadSample

SPECIAL = ["<pad>", "<s>", "</s>", "[IMG]", "[/IMG]", "<image>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few words, with all special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    words = ["a red circle at the top left of a blue square USER: ASSISTANT: You are a helpful assistant."]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(words * 10, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=["[IMG]", "[/IMG]", "<image>"],
    )  # fmt: skip


class Numbered:
    """Pairs whose text is their number and whose picture's grey is their number; those in `broken` are bad
    when read, those in `spoiled` only when their picture is decoded."""

    name = "numbered"

    def __init__(self, count: int, broken: set[int] | None = None, spoiled: set[int] | None = None) -> None:
        self.count = count
        self.broken = broken or set()
        self.spoiled = spoiled or set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Sample:
        if index in self.broken:
            raise BadSample(f"number {index} is broken")
        source = b"no picture" if index in self.spoiled else np.full((4, 4, 3), index % 256, np.uint8)
        words = " ".join(["number", *["red"] * (index % 7), str(index)])
        return pair(Image(source, key=str(index)), words, id=str(index))

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.count}".encode()).hexdigest()[:16]


def _picture(colours: tuple[int, int, int]) -> bytes:
    """Three boxes of one grey each, between bars."""
    pixels = np.full((100, 400, 3), 128, np.uint8)
    for start, colour in zip((0, 150, 300), colours, strict=True):
        pixels[:, start : start + 100] = colour
    held = io.BytesIO()
    PIL.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def write_nlvr(path: Path, examples: int) -> None:
    """A tar file laid out as NLVR's, each example in two arrangements; each third is false."""
    with tarfile.open(path, "w") as tar:
        for number in range(examples):
            label = "true" if number % 3 else "false"
            text = {"sentence": f"There are {number} black blocks", "label": label, "identifier": str(number)}
            for place in range(2):
                members = {"png": _picture((10 + number, 20 + place, 30)), "json": json.dumps(text).encode()}
                for kind, data in members.items():
                    entry = tarfile.TarInfo(f"{number:02d}-0-{place}.{kind}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
