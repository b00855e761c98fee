"""The scenes world as a World: Samples of nine tasks over one shared set of drawn pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tessera.data.sample import Dense, Image, Role, Sample, Segment, Text, interleaved, pair, question
from tessera.data.source import Source, Split
from tessera.data.worlds.scenes.captions import STYLES, Style, canonical_caption, caption
from tessera.data.worlds.scenes.draw import depth, draw, object_boxes, object_masks
from tessera.data.worlds.scenes.edits import edit
from tessera.data.worlds.scenes.graph import Scene, random_scene
from tessera.data.worlds.scenes.pages import Shown, page
from tessera.data.worlds.scenes.questions import ask
from tessera.data.worlds.scenes.referring import refer_to_any
from tessera.data.worlds.scenes.words import weighted
from tessera.errors import UserError, nearest

_VERSION = 1  # goes up when the pictures change, so that cached features of old ones are not taken for new
# Stable codes of the random streams: never renumber.
_STREAMS = {
    "pictures": 0,
    "pairs": 1,
    "questions": 2,
    "edits": 3,
    "pages": 4,
    "referring": 5,
    "depth": 6,
    "conversations": 7,
    "segmentation": 8,
    "drawings": 9,
}
_SPLITS: dict[Split, int] = {"train": 0, "heldout": 1}
COUNTS = (0.3, 0.3, 0.2, 0.2)
BACKGROUND = "background"  # what is no object, where classes of pixels are named
TURNS = 5  # questions in a conversation, at most
MIX: Mapping[Style, float] = {"canonical": 0.25, "short": 0.3, "dense": 0.2, "relational": 0.25}
GROUND = 0.25  # share of "drawings" whose sentence names a background


class ScenesWorld:
    """Drawn shapes with exact ground truth.

    Sample i of a task and split is a pure function of (seed, task, split, i), on any machine and in any
    order. Tasks share the pictures: picture p of a split is the same under every task and carries the key
    "scenes/SPLIT/p", so that frozen features of it are computed once. Training samples of every task are free
    of held-out colour-shape-place combinations, in pictures and words; the objects of a held-out picture are
    held-out combinations without exception.

    Args:
        seed: of everything drawn.
        train_pictures, heldout_pictures: the number of shared pictures of each split.
        counts: chances of 1, 2, ... objects in a picture; they sum to 1.
        captions: chances of the caption styles in "pairs"; None is a mixture of all.
        captions_each, questions_each: samples of "pairs" and "questions" for one picture. Sample i is about
            picture i modulo the number of pictures.

    Raises:
        UserError: a value above makes no sense.
    """

    name = "scenes"
    tasks = ("pairs", "questions", "conversations", "edits", "pages", "referring", "depth", "segmentation", "drawings")

    def __init__(
        self,
        *,
        seed: int = 0,
        train_pictures: int = 24_000,
        heldout_pictures: int = 2_000,
        counts: tuple[float, ...] = COUNTS,
        captions: Mapping[Style, float] | None = None,
        captions_each: int = 1,
        questions_each: int = 4,
    ) -> None:
        self.seed, self.counts, self.mix = seed, tuple(counts), dict(captions or MIX)
        self.pictures: dict[Split, int] = {"train": train_pictures, "heldout": heldout_pictures}
        self.rounds = {"pairs": captions_each, "questions": questions_each}
        self._check()
        own = json.dumps([_VERSION, seed, self.counts]).encode()
        default = (seed, self.counts) == (0, COUNTS)
        self._prefix = "scenes" if default else f"scenes-{hashlib.sha256(own).hexdigest()[:8]}"

    def _check(self) -> None:
        if min(*self.pictures.values(), *self.rounds.values()) < 1:
            raise UserError("The scenes world needs at least 1 picture a split and 1 sample a picture.")
        if not 1 <= len(self.counts) <= 4 or min(self.counts) < 0 or abs(sum(self.counts) - 1) > 1e-6:
            raise UserError(f"counts={self.counts} must be the chances of 1 to 4 objects: none negative, sum 1.")
        for style in self.mix:
            if style not in STYLES:
                raise UserError(f"There is no caption style {style!r}{nearest(style, STYLES)}.")
        if abs(sum(self.mix.values()) - 1) > 1e-6:
            raise UserError(f"The chances of the caption styles sum to {sum(self.mix.values()):g}, not 1.")

    def rng(self, stream: str, split: Split, index: int) -> np.random.Generator:
        """The random numbers of one sample of a task, or of one picture (stream "pictures")."""
        return np.random.default_rng((self.seed, _STREAMS[stream], _SPLITS[split], index))

    def scene(self, split: Split, index: int) -> Scene:
        """The content of picture `index` of a split."""
        return random_scene(self.rng("pictures", split, index), split, self.counts)

    def image(self, split: Split, index: int, *, learned: bool = True) -> Image:
        """Picture `index` of a split, drawn."""
        return self.draw(self.scene(split, index), f"{split}/{index}", learned=learned)

    def draw(self, scene: Scene, key: str, *, learned: bool = True) -> Image:
        """A scene of this world as a picture, drawn when it is looked at; `key` names it within the world."""
        return Image(partial(draw, scene), learned=learned, key=f"{self._prefix}/{key}")

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one task.

        Raises:
            UserError: no such task or split.
        """
        if task not in self.tasks:
            raise UserError(f"The scenes world has no task {task!r}{nearest(task, self.tasks)}.")
        if split not in _SPLITS:
            raise UserError(f"There is no split {split!r}{nearest(split, _SPLITS)}.")
        return ScenesSource(self, task, split)

    def fingerprint(self) -> str:
        """A short stable hash of all that this world holds."""
        parts = [self.source(task, split).fingerprint() for task in self.tasks for split in _SPLITS]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


class ScenesSource:
    """The samples of one task and split. `meta["scene"]` of each is the Scene of its first picture."""

    def __init__(self, world: ScenesWorld, task: str, split: Split) -> None:
        self.world, self.task, self.split = world, task, split
        self.name = f"scenes/{task}/{split}"
        self._length = world.pictures[split] * world.rounds.get(task, 1)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name} has {self._length} samples; there is no number {index}")
        return _BUILDERS[self.task](self, index, self.world.rng(self.task, self.split, index))

    def picture(self, index: int) -> int:
        """The number of the picture that sample `index` is about."""
        return index % self.world.pictures[self.split]

    def shown(self, index: int, *, learned: bool = True) -> tuple[Scene, Image]:
        """The shared picture of sample `index`, and its content."""
        number = self.picture(index)
        scene = self.world.scene(self.split, number)
        return scene, self.world.draw(scene, f"{self.split}/{number}", learned=learned)

    def fingerprint(self) -> str:
        """A short stable hash of the settings and of the first samples as they come out."""
        world = self.world
        settings = [_VERSION, world.seed, world.counts, world.mix, self.task, self.split, len(self)]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for index in range(min(3, len(self))):
            sample = self[index]
            digest.update(sample.text.encode())
            for image in sample.images:
                digest.update(np.asarray(image.pil()).tobytes())
        return digest.hexdigest()[:16]


def _pairs(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    scene, image = source.shown(index)
    mix = source.world.mix
    style: Style = weighted(rng, list(mix), list(mix.values()))
    meta = {"scene": scene, "style": style, "canonical": canonical_caption(scene)}
    return pair(image, caption(scene, rng, style), id=f"{source.name}/{index}", meta=meta)


def _drawings(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    """What is asked for and a picture of just that: a sentence that tells all there is to draw, and where it tells no
    background, a plain light one."""
    scene, image = source.shown(index)
    meta: dict[str, Any] = {"scene": scene}
    if rng.random() < GROUND:
        return pair(image, caption(scene, rng, "dense"), id=f"{source.name}/{index}", meta=meta)
    meta["scene"] = scene = replace(scene, background="plain", tone="light")
    image = source.world.draw(scene, f"{source.split}/drawings/{source.picture(index)}")
    return pair(image, canonical_caption(scene), id=f"{source.name}/{index}", meta=meta)


def _questions(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    scene, image = source.shown(index)
    asked = ask(scene, rng)
    assert asked is not None
    meta = {"scene": scene, "type": asked.kind, "form": asked.form, "answer": asked.answer}
    return question(image, asked.text, asked.answer, id=f"{source.name}/{index}", meta=meta)


def _conversations(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    """Several questions about one picture, each with its answer; none is asked twice."""
    scene, image = source.shown(index, learned=False)
    asked = {made.text: made for made in (ask(scene, rng) for _ in range(TURNS)) if made}
    segments: list[Segment] = [replace(image, role="user")]
    for made in asked.values():
        segments += [Text(made.text, learned=False, role="user"), Text(made.answer, role="assistant")]
    meta = {"scene": scene, "types": tuple(made.kind for made in asked.values())}
    return Sample(tuple(segments), id=f"{source.name}/{index}", meta=meta)


def _edits(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    """Picture, instruction, and the picture after it or the sentence that says why there is none."""
    number = source.picture(index)
    shared = source.world.scene(source.split, number)
    made = edit(shared, rng, source.split)

    def drawn(scene: Scene, role: Role) -> Image:
        key = f"{source.split}/{number}" if scene is shared else f"{source.split}/edits/{index}"
        image = source.world.draw(scene, key, learned=role == "assistant")
        return replace(image, role=role)

    told = Text(made.instruction, learned=False, role="user")
    answer = drawn(made.after, "assistant") if made.after else Text(made.reply, role="assistant")
    meta: dict[str, Any] = {"scene": made.before, "after": made.after, "type": made.kind}
    meta |= {"possible": made.possible, "reason": made.reason}
    return Sample((drawn(made.before, "user"), told, answer), id=f"{source.name}/{index}", meta=meta)


def _pages(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    world, split = source.world, source.split

    def shared(number: int) -> Shown:
        return Shown(world.scene(split, number), number)

    made = page(shared(index), lambda: shared(int(rng.integers(world.pictures[split]))), rng, split)
    parts = [
        part if isinstance(part, str)
        else world.draw(part.scene, f"{split}/{part.number}" if part.number is not None
                        else f"{split}/pages/{index}/{position}")
        for position, part in enumerate(made.parts)
    ]  # fmt: skip
    meta = {"scene": made.scenes[0], "scenes": made.scenes, "type": made.kind}
    return interleaved(parts, id=f"{source.name}/{index}", meta=meta)


def _referring(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    """Picture, phrase, and the box [1, 4] and mask [1, 64, 64] of the one object that the phrase names."""
    scene, image = source.shown(index, learned=False)
    named = refer_to_any(scene, rng)
    one = slice(named.index, named.index + 1)
    segments = (
        image,
        Text(named.phrase, learned=False),
        Dense("boxes", object_boxes(scene)[one], (named.phrase,)),
        Dense("masks", object_masks(scene)[one], (named.phrase,)),
    )
    meta = {"scene": scene, "object": named.index, "referral": named}
    return Sample(segments, id=f"{source.name}/{index}", meta=meta)


def _depth(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    scene, image = source.shown(index, learned=False)
    return Sample((image, Dense("depth", depth(scene))), id=f"{source.name}/{index}", meta={"scene": scene})


def _segmentation(source: ScenesSource, index: int, rng: np.random.Generator) -> Sample:
    """Picture, and masks [K + 1, 64, 64] of each object, named by its shape, and of the background."""
    scene, image = source.shown(index, learned=False)
    masks = object_masks(scene)
    everything = np.concatenate([masks, ~masks.any(axis=0, keepdims=True)])
    labels = (*(thing.shape for thing in scene.objects), BACKGROUND)
    return Sample((image, Dense("masks", everything, labels)), id=f"{source.name}/{index}", meta={"scene": scene})


_BUILDERS: dict[str, Callable[[ScenesSource, int, np.random.Generator], Sample]] = {
    "pairs": _pairs,
    "questions": _questions,
    "conversations": _conversations,
    "edits": _edits,
    "pages": _pages,
    "referring": _referring,
    "depth": _depth,
    "segmentation": _segmentation,
    "drawings": _drawings,
}
