"""Which option a reply names: the bracket form that was asked for, else an option's text, else its letter, else none.

A reply that names two options outside brackets has chosen none: it must never be a lucky hit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from tessera.evaluate.cases.schema import letters

_BRACKETS = re.compile(r"\[\s*\[(.*?)\]\s*\]", re.DOTALL)
_QUOTES = " \t\r\n'\"`´‘’“”*_"
_NEGATED = re.compile(
    r"(?:\bnot|n't|n’t|\bnor|\brather than|\brules? out|\bruled out|\bexclud\w+)(?:\s+(?:an?|the))?\s*$"
)
_SAID = r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\b(?:\s+(?:is|would be))?[\s:*'\"(]*([{some}])(?![\w'’])(?!(?<=A)\s+[a-z])"


def parse(reply: str, options: Sequence[str]) -> int | None:
    """The place in `options` of the one that `reply` chooses; None for no response.

    Args:
        options: in the order in which they were shown, which their letters follow.
    """
    bracketed = _BRACKETS.findall(reply)
    if bracketed:
        inside = bracketed[-1].strip(_QUOTES)  # the form closes the reply; earlier ones may repeat the question
        places = named(inside, options)
        if len(places) == 1:
            return next(iter(places))
        if not places and (place := _lettered(inside, options)) is not None:
            return place
        if places:
            return None
    places = named(reply, options)
    if places:
        only = next(iter(places))
        return only if len(places) == 1 and not _denied(reply, options, only) else None
    return _lettered(reply, options)


def named(text: str, options: Sequence[str]) -> set[int]:
    """Places of the options whose words stand in `text`. One within the words of a longer one ("measles" in "German
    measles") is not named there."""
    fold = _folding(options)
    here = fold(text)
    spans = [
        (found.start(), found.end(), place)
        for place, option in enumerate(options)
        for found in re.finditer(rf"(?<!\w){re.escape(fold(option))}(?!\w)", here)
    ]
    return {
        place
        for start, end, place in spans
        if not any(left <= start and end <= right and right - left > end - start for left, right, _ in spans)
    }


def _denied(text: str, options: Sequence[str], place: int) -> bool:
    """Whether the option is named as what it is not, wherever it is named."""
    words = options[place].casefold()
    before = [text.casefold()[: found.start()] for found in re.finditer(re.escape(words), text.casefold())]
    return bool(before) and all(_NEGATED.search(one) for one in before)


def _lettered(text: str, options: Sequence[str]) -> int | None:
    """The one option whose letter stands alone: as the whole text, before a dot or bracket at its start, or after the
    word answer, option or choice."""
    some = letters(options)
    plain = text.strip().strip(_QUOTES + "().:[]")
    if len(plain) == 1 and plain.upper() in some:
        return some.index(plain.upper())
    found = re.findall(rf"^\W*([{some}])(?:[).:]|\s*$)", text, re.MULTILINE)
    found += re.findall(_SAID.replace("{some}", some), text)
    return some.index(found[0]) if len(set(found)) == 1 else None


def _folding(options: Sequence[str]) -> Callable[[str], str]:
    """What leaves case and punctuation out; case alone where without punctuation two options would be alike."""
    return _fold if len({_fold(one) for one in options} - {""}) == len(options) else str.casefold


def _fold(text: str) -> str:
    return " ".join(re.sub(r"[^\w]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())
