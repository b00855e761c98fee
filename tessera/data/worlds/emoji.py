"""World `emoji`: thousands of small pictures drawn by people, with names written by people in many languages.

Every computer has a colour emoji font; the `emoji` package has the names. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib import resources
from pathlib import Path

import emoji as unicode_emoji
import numpy as np
from PIL import Image as PIL

from tessera.data.sample import Image, Sample, pair, question
from tessera.data.source import Source, Split
from tessera.data.worlds.emoji_font import EmojiFont, find_font
from tessera.errors import UserError, nearest

VERSION = 2  # goes up when the same index would give another picture or another text
HELD_OUT = 0.1  # share of the families
LANGUAGES = {
    "en": "English", "es": "Spanish", "ja": "Japanese", "ko": "Korean", "pt": "Portuguese", "it": "Italian",
    "fr": "French", "de": "German", "fa": "Persian", "id": "Indonesian", "zh": "Chinese", "ru": "Russian",
    "tr": "Turkish", "ar": "Arabic",
}  # fmt: skip
SKIN_TONES = {
    "\U0001f3fb": "light", "\U0001f3fc": "medium-light", "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark", "\U0001f3ff": "dark",
}  # fmt: skip

_JOINER = "\u200d"
_MODIFIERS = re.compile(
    "[\U0001f3fb-\U0001f3ff\ufe0f]"  # skin tone, picture style
    "|\u200d[\u2640\u2642\u27a1\u2194\u2195]"  # gender, direction
    "|\u200d[\U0001f9b0-\U0001f9b3]"  # hair
)
_ADULT = re.compile("[\U0001f468\U0001f469]")  # man, woman -> person
_CHILD = re.compile("[\U0001f466\U0001f467]")  # boy, girl -> child
_PERSON, _ANY_CHILD = "\U0001f9d1", "\U0001f9d2"
_SAME = {  # couples that Unicode spells both as one code point and as a sequence
    "\U0001f9d1\u200d\u2764\u200d\U0001f9d1": "\U0001f491",
    "\U0001f9d1\u200d\u2764\u200d\U0001f48b\u200d\U0001f9d1": "\U0001f48f",
    "\U0001f9d1\u200d\U0001f91d\u200d\U0001f9d1": "\U0001f46b",
    "\U0001f46c": "\U0001f46b",
    "\U0001f46d": "\U0001f46b",
    "\U0001faf1\u200d\U0001faf2": "\U0001f91d",
}


def family(sequence: str) -> str:
    """The base emoji that `sequence` is a variant of: without skin tone, gender, hair and direction."""
    bare = _CHILD.sub(_ANY_CHILD, _ADULT.sub(_PERSON, _MODIFIERS.sub("", sequence)))
    return _SAME.get(bare, bare) or sequence


def words(name: str) -> str:
    """A name of the `emoji` package as running words: ':thumbs_up:' -> 'thumbs up'."""
    return " ".join(name.strip(":").replace("_", " ").split())


@dataclass(frozen=True, slots=True)
class Emoji:
    """One emoji: its code points, the base it belongs to, and where Unicode sorts it."""

    sequence: str
    base: str
    group: str
    subgroup: str

    @property
    def codes(self) -> str:
        """Its code points in hexadecimal, as in '1f44d-1f3fd'."""
        return "-".join(f"{ord(character):x}" for character in self.sequence)

    @property
    def skin_tones(self) -> tuple[str, ...]:
        """Its skin tones in reading order: none, one, or one for each of two people."""
        return tuple(SKIN_TONES[character] for character in self.sequence if character in SKIN_TONES)

    def names(self, language: str) -> tuple[str, ...]:
        """Its names in `language`, the main one first; aliases are known in English only."""
        if language != "en":
            unicode_emoji.config.load_language(language)
        entry = unicode_emoji.EMOJI_DATA[self.sequence]
        found = [
            words(name) for name in (entry.get(language, ""), *(entry.get("alias", ()) if language == "en" else ()))
        ]
        if self.subgroup == "country-flag" and language == "en":
            found = [f"flag of {found[0]}"]  # the bare name is the country's; its aliases are codes
        return tuple(dict.fromkeys(name for name in found if name))


@lru_cache(maxsize=1)
def _groups() -> dict[str, tuple[str, str]]:
    """Base emoji -> (group, subgroup), as Unicode sorts them."""
    text = (resources.files(__package__) / "emoji_groups.json").read_text(encoding="utf-8")
    return {
        base: (group, subgroup)
        for group, subgroups in json.loads(text)["groups"].items()
        for subgroup, bases in subgroups.items()
        for base in bases.split(" ")
    }


def _sorted_into_group(sequence: str) -> Emoji:
    base = family(sequence)
    known = _groups()
    of_part = known["\U0001f1eb\U0001f1f7"] if "\U0001f1e6" <= base[0] <= "\U0001f1ff" else known.get(base[0])
    group, subgroup = known.get(base) or of_part or ("Other", "other")
    return Emoji(sequence, base, group, subgroup)


def _joined(pictures: dict[str, str]) -> dict[str, str]:
    """Base emoji -> the name of its family: bases that share one picture (some flags) are one family."""
    leader: dict[str, str] = {}

    def lead(base: str) -> str:
        while leader.get(base, base) != base:
            base = leader[base]
        return base

    first: dict[str, str] = {}
    for sequence, digest in pictures.items():
        base = lead(family(sequence))
        other = lead(first.setdefault(digest, base))
        leader[max(base, other)] = min(base, other)
    return {base: lead(base) for base in {family(sequence) for sequence in pictures}}


def _held_out(name: str) -> bool:
    digest = hashlib.sha256(f"emoji {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64


class EmojiWorld:
    """Emoji of this machine's colour font as Samples, drawn `size` pixels square on plain backgrounds.

    Tasks: `pairs` (Image, Text name or alias) and `names` (Image, "What is this in French?", its name) for
    each of `languages`. In training each emoji is seen in `views` drawings, which differ in background, place
    and scale. The split is by base emoji: a variant (skin tone, gender, direction) or a twin picture never
    crosses it.

    Raises:
        UserError: no colour emoji font is found, or a language is unknown.
    """

    name = "emoji"
    tasks = ("pairs", "names")

    def __init__(
        self,
        font: str | Path | None = None,
        *,
        languages: Sequence[str] = ("en",),
        size: int = 64,
        views: int = 4,
    ) -> None:
        for language in languages:
            if language not in LANGUAGES:
                raise UserError(f"the emoji names have no language {language!r}{nearest(language, LANGUAGES)}")
        self.font = EmojiFont(find_font(font))
        self.languages = tuple(languages)
        self.size = size
        self.views = views

    @cached_property
    def emoji(self) -> tuple[Emoji, ...]:
        """Every fully-qualified emoji that the font has, in the order of their code points."""
        return tuple(_sorted_into_group(sequence) for sequence in sorted(self._pictures))

    @cached_property
    def _pictures(self) -> dict[str, str]:
        qualified = unicode_emoji.STATUS["fully_qualified"]
        data = unicode_emoji.EMOJI_DATA
        found = self.font.index(sorted(s for s, entry in data.items() if entry["status"] == qualified))
        if not found:
            raise UserError(f"the font {str(self.font.path)!r} has no colour emoji; give the path of a font that has")
        return found

    def split(self, split: Split) -> tuple[Emoji, ...]:
        """The emoji of one split."""
        leaders = _joined(self._pictures)
        return tuple(one for one in self.emoji if _held_out(leaders[one.base]) == (split == "heldout"))

    def describe(self) -> str:
        """One sentence: how many emoji there are, and why not more."""
        found = len(self.emoji)
        known = sum(
            entry["status"] == unicode_emoji.STATUS["fully_qualified"] for entry in unicode_emoji.EMOJI_DATA.values()
        )
        bases = len({one.base for one in self.emoji})
        text = f"{found} of {known} emoji, {bases} base emoji, from {self.font.path}"
        if self.font.shapes_sequences:
            return text
        return f"{text}; sequences are left out, as Pillow finds no FriBiDi (Debian: package libfribidi0)"

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one task.

        Raises:
            UserError: the task is not one of `tasks`.
        """
        if task not in self.tasks:
            raise UserError(f"world 'emoji' has no task {task!r}{nearest(task, self.tasks)}")
        return EmojiSource(self, task, split)

    def fingerprint(self) -> str:
        """A hash of the font file, the names' version and the drawing options."""
        held = (
            VERSION,
            self.font.digest,
            self.font.shapes_sequences,
            unicode_emoji.__version__,
            self.languages,
            self.size,
            self.views,
        )
        return hashlib.sha256(repr(held).encode()).hexdigest()[:16]

    def picture(self, one: Emoji, view: int) -> PIL.Image:
        """Drawing number `view` of an emoji: RGB, `size` square."""
        drawn = self.font.picture(one.sequence)
        seed = hashlib.sha256(f"{one.codes}/{view}".encode()).digest()[:8]
        random = np.random.default_rng(int.from_bytes(seed, "big"))
        side = self.size * random.uniform(0.74, 0.92)
        scale = side / max(drawn.size)
        width, height = (max(1, round(length * scale)) for length in drawn.size)
        place = [round(2 + random.uniform() * (self.size - 4 - length)) for length in (width, height)]  # a margin
        page = PIL.new("RGB", (self.size, self.size), _background(random))
        small = drawn.convert("RGBa").resize((width, height), PIL.Resampling.LANCZOS).convert("RGBA")
        page.paste(small, (place[0], place[1]), small)
        return page


def _background(random: np.random.Generator) -> tuple[int, int, int]:
    """A plain pale or dark colour of low saturation."""
    grey = random.uniform(200, 250) if random.random() < 0.75 else random.uniform(25, 70)
    red, green, blue = np.clip(grey + random.uniform(-14, 14, size=3), 0, 255).astype(int)
    return int(red), int(green), int(blue)


@dataclass
class EmojiSource:
    """One task and split of an `EmojiWorld`; pictures are drawn when a sample is read."""

    world: EmojiWorld
    task: str
    split: Split

    def __post_init__(self) -> None:
        self.name = f"emoji/{self.task}/{self.split}"

    @cached_property
    def _entries(self) -> tuple[tuple[Emoji, str], ...]:
        """Emoji and language of every named picture, views apart."""
        return tuple(
            (one, language)
            for one in self.world.split(self.split)
            for language in self.world.languages
            if one.names(language)
        )

    @property
    def _views(self) -> int:
        return self.world.views if self.split == "train" else 1

    def __len__(self) -> int:
        return len(self._entries) * self._views

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        entry, view = divmod(index, self._views)
        one, language = self._entries[entry]
        names = one.names(language)
        key = f"{self.world.fingerprint()}/{one.codes}/{view}"
        image = Image(partial(self.world.picture, one, view), key=key)
        meta = {
            "emoji": one.sequence,
            "base": one.base,
            "group": one.group,
            "subgroup": one.subgroup,
            "skin_tones": one.skin_tones,
            "language": language,
            "names": names,
        }
        identity = f"emoji/{language}/{one.codes}/{view}"
        if self.task == "pairs":
            return pair(image, names[view % len(names)], id=identity, meta=meta)
        ask = f"What is this in {LANGUAGES[language]}?"
        return question(image, ask, names[0], id=identity, meta=meta)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.world.fingerprint()} {self.name}".encode()).hexdigest()[:16]
