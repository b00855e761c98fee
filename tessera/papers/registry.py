"""The works that Tessera is about: a catalogue of all, and the classes of those that are built.

The catalogue is a packaged JSON file, so that listing it imports nothing heavy. A work is built when it has a
file in `tessera/papers/` (slug `vl-gpt`, file `vl_gpt.py`) that registers a class with `@paper`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from tessera.errors import UserError, nearest

FAMILIES = {
    "S": "unified understanding and generation",
    "T": "image or video tokenizer",
    "L": "language model with eyes",
    "R": "token reduction",
    "B": "vision backbone",
    "P": "self-supervised or multimodal pre-training",
    "A": "adaptation and prompting",
    "D": "diffusion as generalist",
    "G": "adversarial generation",
    "V": "video",
    "X": "vision-language-action",
    "K": "retrieval and knowledge",
    "C": "compression of models",
    "E": "evaluation or survey",
}
LIGHTS = ("size", "exact", "claim", "use", "weights")
Light = Literal["on", "off", "n/a", "dark"]


@dataclass(frozen=True)
class TrainOptions:
    """What `tessera train` asks of a paper.

    `data`: names of worlds and paths of the user's own files; empty means the paper's own choice of worlds.
    `steps`: the length of the whole training, shared among its stages as the paper shares it; None: its default.
    `parts`: published checkpoints by role, as in {"language": "/models/llama-7b"}; empty means mini parts.
    `settings`: fields of the paper's recipe by name, as in {"align.batch": "256"}; see `tessera.papers.settings`.
    """

    out: Path
    data: tuple[str, ...] = ()
    steps: int | None = None
    seed: int = 0
    resume: bool = False
    allow_other_data: bool = False
    size: Literal["mini", "published"] = "mini"
    parts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    workers: int | None = None


class Paper(Protocol):
    """What a built paper can be asked for."""

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`: parts, stages, claims, figures."""
        ...

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters, FLOPs and tokens at published size, counted on the meta device."""
        ...

    def train(self, options: TrainOptions) -> Path:
        """Train, and give the folder of the finished model."""
        ...

    def reproduce(self, seeds: int, out: Path) -> dict[str, Any]:
        """Run the study of the paper's claims; write its result to `out` and give it."""
        ...

    @property
    def studies(self) -> Mapping[str, Callable[..., dict[str, Any]]]:
        """Further studies by name: functions of `seeds`, `out`, `data` and `model`, each of the last two a Path or
        None."""
        ...


@dataclass(frozen=True)
class Entry:
    """One work of the catalogue."""

    slug: str
    year: int
    families: tuple[str, ...]
    title: str
    summary: str
    arxiv: str | None = None
    capabilities: tuple[str, ...] = ()
    lights: Mapping[str, Light] = field(default_factory=lambda: dict.fromkeys(LIGHTS, "dark"))

    @property
    def module(self) -> str:
        """The file that builds it, as a module of this package."""
        return self.slug.replace("-", "_")

    @cached_property
    def built(self) -> bool:
        """Whether that file exists."""
        return (resources.files(__package__) / f"{self.module}.py").is_file()

    def as_json(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return {
            "slug": self.slug,
            "year": self.year,
            "families": list(self.families),
            "title": self.title,
            "summary": self.summary,
            "arxiv": self.arxiv,
            "built": self.built,
            "capabilities": list(self.capabilities),
            "lights": dict(self.lights),
        }


@lru_cache(maxsize=1)
def papers() -> tuple[Entry, ...]:
    """All works, in the order of the catalogue."""
    rows = json.loads((resources.files(__package__) / "catalogue.json").read_text(encoding="utf-8"))
    return tuple(_entry(row) for row in rows)


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(
        slug=row["slug"],
        year=row["year"],
        families=tuple(row["families"]),
        title=row["title"],
        summary=row["summary"],
        arxiv=row["arxiv"],
        capabilities=tuple(row.get("capabilities", ())),
        lights={**dict.fromkeys(LIGHTS, "dark"), **row.get("lights", {})},
    )


def entry(slug: str) -> Entry:
    """The work called `slug`.

    Raises:
        UserError: there is none; the nearest is named.
    """
    known = {one.slug: one for one in papers()}
    if slug not in known:
        raise UserError(f"there is no paper {slug!r}{nearest(slug, known)} (`tessera papers` lists them)")
    return known[slug]


_BUILT: dict[str, type[Any]] = {}
_Class = TypeVar("_Class", bound=type)


def paper(slug: str) -> Callable[[_Class], _Class]:
    """Register the decorated class as the work called `slug`. It is made without arguments."""
    entry(slug)

    def register(cls: _Class) -> _Class:
        _BUILT[slug] = cls
        return cls

    return register


def get(slug: str) -> Paper:
    """The built paper called `slug`, ready to be asked.

    Raises:
        UserError: the name is unknown, or the work is in the catalogue and not built yet.
    """
    found = entry(slug)
    if not found.built:
        built = ", ".join(one.slug for one in papers() if one.built) or "none yet"
        raise UserError(f"{slug!r} is in the catalogue but not built yet; built are: {built}")
    import_module(f"{__package__}.{found.module}")
    made: Paper = _BUILT[slug]()
    return made
