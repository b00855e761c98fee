"""Read the objects back out of a caption: a small tolerant reader of the grammar in `captions`.

It knows noun phrases ("a small red star with stripes") and the places said of them; anything else is passed
over, so text that a model has made can be read as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from tessera.data.worlds.scenes.graph import COLOURS, PLACES, SHAPES, SIZES, TEXTURES
from tessera.data.worlds.scenes.words import ITS_RELATIONS, PATTERNS, PLACE_FORMS, RELATIONS, plural

Mention = tuple[str, str, str | None, str | None, str | None]  # colour, shape, place, size, texture
_WORD = re.compile(r"[a-z]+|[.,;:]")
_SYNONYMS = {"size": {"big": "large", "little": "small", "tiny": "small"}, "place": {"middle": "center"}}
_LINKS = ("is", "sits", "lies", "there is", "which is", "which sits", ":")
_ADJECTIVES = ("size", "texture", "colour")


@cache
def _lexicon() -> dict[tuple[str, ...], tuple[str, str]]:
    """Runs of words to what they are: (kind, name)."""
    entries: dict[str, tuple[str, str]] = {}
    for kind, names in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES), ("texture", TEXTURES)):
        entries |= {name: (kind, name) for name in names}
    entries |= {plural(name): ("shape", name) for name in SHAPES}
    entries |= {f"in {name}": ("after_colour", name) for name in COLOURS}
    entries |= {f"of {name} size": ("after_size", name) for name in SIZES}
    entries |= {f"with {noun}": ("after_texture", name) for name, noun in PATTERNS.items()}
    for place in PLACES:
        for form in (
            *PLACE_FORMS[place],
            *(f"{start} the {place}" for start in ("at", "in", "on", "to", "near")),
        ):
            for tail in ("", " of the picture", " of the image", " corner", " side"):
                entries[form + tail] = ("place", place)
    for forms in (*RELATIONS.values(), *ITS_RELATIONS.values()):
        entries |= {form: ("relation", form) for form in forms}
    for kind, synonyms in _SYNONYMS.items():
        entries |= {word: (kind, name) for word, name in synonyms.items()}
    entries |= {word: ("link", word) for word in _LINKS}
    entries |= {word: ("article", word) for word in ("a", "an", "the", "one", "another")}
    return {tuple(_WORD.findall(words)): meaning for words, meaning in entries.items()}


@cache
def _longest() -> int:
    return max(map(len, _lexicon()))


def _tokens(text: str) -> list[tuple[str, str]]:
    """Words to (kind, name), longest entry first; unknown words have the kind "other"."""
    words, lexicon = _WORD.findall(text.lower()), _lexicon()
    tokens, start = [], 0
    while start < len(words):
        for length in range(min(_longest(), len(words) - start), 0, -1):
            meaning = lexicon.get(tuple(words[start : start + length]))
            if meaning or length == 1:
                tokens.append(meaning or ("other", words[start]))
                start += length
                break
    return tokens


@dataclass
class _Found:
    said: dict[str, str]
    definite: bool
    end: int  # the token after the phrase


def _noun_phrase(tokens: list[tuple[str, str]], start: int) -> _Found | None:
    """The noun phrase that begins at `start`, or None."""
    said: dict[str, str] = {}
    at = start + (tokens[start][0] == "article")
    while at < len(tokens) and tokens[at][0] in _ADJECTIVES:
        said[tokens[at][0]] = tokens[at][1]
        at += 1
    if at >= len(tokens) or tokens[at][0] != "shape":
        return None
    said["shape"] = tokens[at][1]
    at += 1
    while at < len(tokens) and tokens[at][0].startswith("after_"):
        said[tokens[at][0].removeprefix("after_")] = tokens[at][1]
        at += 1
    return _Found(said, tokens[start][1] == "the", at) if "colour" in said else None


def _same(said: dict[str, str], other: dict[str, str]) -> bool:
    return said["colour"] == other["colour"] and all(other.get(key, name) == name for key, name in said.items())


def mentioned_objects(text: str) -> list[Mention]:
    """The objects that a caption names, in order of first mention.

    Returns:
        (colour, shape, place or None, size or None, texture or None) for each. "The red star" after "a red
        star" is the same object. Shapes without a colour are passed over.
    """
    tokens, found = _tokens(text), list[dict[str, str]]()
    ahead: str | None = None  # a place said before its object
    current: dict[str, str] | None = None  # the object that a place would belong to
    at = 0
    while at < len(tokens):
        kind, name = tokens[at]
        phrase = _noun_phrase(tokens, at)
        if phrase:
            known = next((f for f in found if _same(phrase.said, f)), None) if phrase.definite else None
            current = known if known is not None else phrase.said
            current.update(phrase.said)
            if known is None:
                found.append(current)
            if ahead:
                current.setdefault("place", ahead)
            ahead, at = None, phrase.end
            continue
        if kind == "place":
            if current is not None and "place" not in current and not _fronted(tokens, at):
                current["place"] = name
            else:
                ahead = name
        elif kind == "link" and name.startswith("which"):
            current = found[-1] if found else None
        elif kind != "link":
            current = None
            ahead = None if name in ".;" else ahead
        at += 1
    return [(f["colour"], f["shape"], f.get("place"), f.get("size"), f.get("texture")) for f in found]


def _fronted(tokens: list[tuple[str, str]], at: int) -> bool:
    """Whether the place at `at` opens a clause: "at the top is a star"."""
    after = at + 1
    linked = after < len(tokens) and tokens[after][0] == "link"
    return linked and after + 1 < len(tokens) and _noun_phrase(tokens, after + 1) is not None
