"""Class names as the words that a CLIP reads: a template with some of its first words left to prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tessera.errors import UserError

TEMPLATE = "a photo of a {}."
_SHOWN = 3  # names in a sentence


def plain(name: str) -> str:
    """A class name as words: underscores are spaces."""
    return " ".join(name.replace("_", " ").split())


def unknown(tokenizer: PreTrainedTokenizerFast, name: str) -> list[str]:
    """Words of `name` that the tokenizer has no pieces for, in whole or in part, or takes for marks of its own."""
    return [word for word in name.split() if not _covered(tokenizer, word)]


def _covered(tokenizer: PreTrainedTokenizerFast, word: str) -> bool:
    """Whether pieces other than marks stand for every letter; some tokenizers drop what they do not know."""
    read = tokenizer(word, add_special_tokens=False, return_offsets_mapping=True)
    known: set[int] = set()
    for piece, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True):
        if piece not in tokenizer.all_special_ids:
            known.update(range(start, end))
    return known >= set(range(len(word)))


def lead(tokenizer: PreTrainedTokenizerFast, template: str) -> list[int]:
    """The pieces of a template before the class name."""
    words: list[int] = tokenizer(template.partition("{}")[0].strip(), add_special_tokens=False)["input_ids"]
    return words


def read_names(
    tokenizer: PreTrainedTokenizerFast, classes: Sequence[str], prompts: int, longest: int, template: str = TEMPLATE
) -> Tensor:
    """Token ids int64 [K, L] of K classes in the template, padded behind their end mark.

    Positions 1 to `prompts` are where learned prompts go: the template's first words, or, where those are fewer, so
    many places before the name and its full stop alone.

    Args:
        longest: positions that the text tower has.

    Raises:
        UserError: two classes of one name or none; a name that is empty, has words that the tokenizer does not
            know, or is too long; a template without a place for the name.
    """
    if len(set(classes)) != len(classes) or not classes:
        raise UserError(f"classes need different names, one or more, not {list(classes)}")
    if template.count("{}") != 1:
        raise UserError(f"the template {template!r} has no single place {{}} for the class name")
    words = lead(tokenizer, template)
    rows = []
    for name in classes:
        text = plain(name)
        strange = unknown(tokenizer, text)
        if strange or not text:
            what = f"{strange[0]!r} in it is not of its vocabulary" if strange else "it is empty"
            raise UserError(f"the tokenizer cannot read the class name {name!r}: {what}; rename the class")
        if prompts <= len(words):
            rows.append(tokenizer(template.format(text))["input_ids"])
        else:
            start, *rest = tokenizer(text + template.partition("{}")[2])["input_ids"]
            rows.append([start, *words[:1] * prompts, *rest])
    long = [name for name, row in zip(classes, rows, strict=True) if len(row) > longest]
    if long:
        raise UserError(
            f"{len(long)} class names with their prompts are longer than the {longest} positions of the text tower:"
            f" {', '.join(map(repr, long[:_SHOWN]))}; shorten them, or learn fewer prompts"
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])
