"""The works that Tessera is about: a catalogue of all, and the classes of those that are built.

The catalogue is a packaged JSON file, so that listing it imports nothing heavy. A work is built when it has a
file in `tessera/papers/` (slug `vl-gpt`, file `vl_gpt.py`) that registers a class with `@paper`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache, partial
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tessera.errors import UserError, nearest
from tessera.papers import lights
from tessera.papers.figures import Figure
from tessera.papers.lights import LIGHTS, Light

if TYPE_CHECKING:
    from tessera.study.design import Study
    from tessera.train.engine import Callback, Trainer

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
CAPABILITIES = (
    "any-to-any", "depth-estimation", "feature-extraction", "image-classification", "image-segmentation",
    "image-text-to-text", "image-to-image", "image-to-text", "image-to-video", "keypoint-detection", "multiple-choice",
    "object-detection", "robotics", "text-classification", "text-generation", "text-to-image", "text-to-video",
    "unconditional-image-generation", "video-classification", "video-text-to-text", "visual-question-answering",
    "zero-shot-image-classification",
)  # fmt: skip


@dataclass(frozen=True)
class TrainOptions:
    """What `tessera train` asks of a paper.

    `data`: names of worlds and paths of the user's own files; empty means the paper's own choice of worlds.
    `steps`: the length of the whole training, shared among its stages as the paper shares it; None: its default.
    `parts`: published checkpoints by role, as in {"language": "/models/llama-7b"}; empty means mini parts.
    `settings`: fields of the paper's recipe by name, as in {"align.batch": "256"}; see `tessera.papers.settings`.
    `workers`: threads that read ahead; None: see `reading_threads`.
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

    @property
    def reading_threads(self) -> int:
        """`workers`; where none is said, 1 for files beside a GPU, and else 0: where processors train, on all of their
        cores, a thread that reads takes more from the step than reading takes by itself; and worlds are drawn in
        Python, which one thread does as fast as two."""
        import torch  # most commands need it not

        from tessera.data.worlds import world_names

        if self.workers is not None:
            return self.workers
        return int(torch.cuda.is_available() and any(name not in world_names() for name in self.data))


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Paper:
    """What a built paper can be asked for. A paper's class fills in what it has; it is made without arguments.

    The first line of its docstring is the one sentence that `tessera show` says of the work.

    Attributes:
        slug: its name in the catalogue, set by `@paper`.
        variants: names that `size` takes beside None.
    """

    slug: str
    variants: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """What the work does."""
        return (type(self).__doc__ or "").splitlines()[0]

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`: parts, stages, claims."""
        return {}

    def figures(self) -> Sequence[Figure]:
        """Figures that the paper prints, each with the place of ours in `size`."""
        return ()

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters, multiply-adds and tokens at published size, counted on the meta device; all or one variant."""
        raise UserError(f"{self.slug} has nothing to count")

    def train(self, options: TrainOptions) -> Path:
        """Train, and give the folder of the finished model."""
        raise UserError(f"{self.slug} has nothing to train")

    def trainer(self, options: TrainOptions, recipe: Any, callbacks: Sequence[Callback] = ()) -> Trainer:
        """The engine for `options`. A resumed run must share `recipe`, a dataclass of all that shapes the training."""
        from tessera.train.engine import Trainer  # torch

        return Trainer(
            options.out, config={"paper": self.slug, "size": options.size, "recipe": asdict(recipe)},
            seed=options.seed, resume=options.resume, allow_other_data=options.allow_other_data,
            precision=options.precision, callbacks=callbacks,
        )  # fmt: skip

    def study(self) -> Study:
        """The study of the paper's headline claims."""
        raise UserError(f"{self.slug} has no study")

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """Further studies by name: functions of `data` and `model`, each a Path or None."""
        return {}

    def studied(self, name: str | None, data: Path | None = None, model: Path | None = None) -> Study:
        """The study of that name, or that of the headline claims.

        Raises:
            UserError: there is none (the nearest is named), or files for a study that reads none.
        """
        if name is None:
            if data or model:
                raise UserError("--data and --model belong to a further study; name it with --study")
            return self.study()
        if name not in self.studies:
            raise UserError(f"{self.slug} has no study {name!r}{nearest(name, self.studies)}")
        return self.studies[name](data=data, model=model)

    def reproduce(
        self, seeds: int, out: Path, study: str | None = None, *, data: Path | None = None, model: Path | None = None,
        processes: int = 1,
    ) -> dict[str, Any]:  # fmt: skip
        """Run a study, by default `study`, write its result to `out` and give it. A stopped one goes on where it was.

        Args:
            data, model: what a further study reads and starts from.
            processes: how many train at once.
        """
        from tessera.study.engine import run  # numpy; most commands need neither

        make = partial(_studied, self.slug, study, data, model)
        return run(self.studied(study, data, model), seeds, out=out, tell=say, processes=processes, make=make)


def _studied(slug: str, name: str | None, data: Path | None, model: Path | None) -> Study:
    """A study by names alone, as another process can make it."""
    return get(slug).studied(name, data, model)


@dataclass(frozen=True)
class Entry:
    """One work of the catalogue."""

    slug: str
    year: int
    families: tuple[str, ...]
    title: str
    summary: str
    arxiv: str
    capabilities: tuple[str, ...]
    keywords: tuple[str, ...]
    not_applicable: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The file that builds it, as a module of this package."""
        return self.slug.replace("-", "_")

    @cached_property
    def built(self) -> bool:
        """Whether that file exists."""
        return (resources.files(__package__) / f"{self.module}.py").is_file()

    @cached_property
    def lights(self) -> Mapping[str, Light]:
        """Its lights by the results that belong to this version."""
        return self.lit()

    def lit(self, *folders: Path) -> dict[str, Light]:
        """Its lights where results in `folders` come before those that belong to this version."""
        if not self.built:
            return dict.fromkeys(LIGHTS, "dark")
        return {**lights.lights(self.slug, *folders, lights.shipped()), **dict.fromkeys(self.not_applicable, "n/a")}

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
            "keywords": list(self.keywords),
            "lights": dict(self.lights),
            "not_applicable": dict(self.not_applicable),
        }


@lru_cache(maxsize=1)
def papers() -> tuple[Entry, ...]:
    """All works, in the order of the catalogue."""
    rows = json.loads((resources.files(__package__) / "catalogue.json").read_text(encoding="utf-8"))
    return tuple(Entry(**{name: _fixed(value) for name, value in row.items()}) for row in rows)


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def entry(slug: str) -> Entry:
    """The work called `slug`.

    Raises:
        UserError: there is none; the nearest is named.
    """
    known = {one.slug: one for one in papers()}
    if slug not in known:
        raise UserError(f"there is no paper {slug!r}{nearest(slug, known)} (`tessera papers` lists them)")
    return known[slug]


_BUILT: dict[str, type[Paper]] = {}
_Class = TypeVar("_Class", bound=type[Paper])


def paper(slug: str) -> Callable[[_Class], _Class]:
    """Register the decorated class as the work called `slug`. It is made without arguments."""
    entry(slug)

    def register(cls: _Class) -> _Class:
        cls.slug = slug
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
    return _BUILT[slug]()
