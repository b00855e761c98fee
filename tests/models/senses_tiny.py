"""Tiny frozen encoders for a policy, and folders of them."""

from __future__ import annotations

from pathlib import Path

from tessera.models.policy.senses import Senses
from tessera.zoo.parts import load_tokenizer
from tessera.zoo.senses import read_senses
from tests.adapt.tiny_clip import tiny

WIDTHS = (24, 64)  # of pictures and of words


def folder(path: Path) -> Path:
    """A whole CLIP over 16 x 16 pixels in patches of 8, with its tokenizer."""
    tokenizer = load_tokenizer("mini/tokenizer")
    tiny(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def senses(path: Path) -> Senses:
    """Both encoders from `folder(path)`."""
    where = str(folder(path))
    return read_senses(where, where)
