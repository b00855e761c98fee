"""Cases made from the scenes world: which object is drawn, out of five; a note that leaks it word by word; readers'
votes from a made-up classifier that sees colours better than shapes.

Nothing in the list of options gives the right one away: all five are drawn alike.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.source import Split
from tessera.data.worlds.scenes.graph import COLOURS, SHAPES, Scene, SceneObject
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import UserError
from tessera.evaluate.cases.schema import Case
from tessera.files import write_text

OPTIONS = 5
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
QUESTION = "A colleague notes: a {size} {texture} {colour} {shape}, {place}. Which object is it?"
UNSAID = {"colour": "colored", "shape": "object"}  # what stands where a word of the class is not said
PICTURES = "pictures"
FILE = "cases.jsonl"


def one_object_world(seed: int, pictures: int, heldout: int) -> ScenesWorld:
    """The world that cases are made of."""
    return ScenesWorld(seed=seed, train_pictures=pictures, heldout_pictures=heldout, counts=(1.0,))


def scene_case(world: ScenesWorld, split: Split, index: int, leak: float, images: tuple[Path, ...] = ()) -> Case:
    """The case of picture `index` of a split.

    Args:
        world: scenes of one object.
        leak: chance that the note says the colour, and that it says the shape. What it says at one chance it says at
            every higher one.
        images: the picture's file.

    Raises:
        UserError: `leak` is no share.
    """
    if not 0 <= leak <= 1:
        raise UserError(f"a leak is a share from 0 to 1, not {leak}")
    scene = world.scene(split, index)
    (thing,) = scene.objects
    rng = np.random.default_rng((world.seed, split == "heldout", index))
    others = [one for one in CLASSES if one != f"{thing.colour} {thing.shape}"]
    options = [others[place] for place in rng.permutation(len(others))[: OPTIONS - 1]]
    answer = int(rng.integers(OPTIONS))
    options.insert(answer, f"{thing.colour} {thing.shape}")
    said = {name: getattr(thing, name) if rng.random() < leak else word for name, word in UNSAID.items()}
    votes, voters = _votes(scene, options, rng)
    return Case(
        f"{split}-{index}",
        QUESTION.format(**{"size": thing.size, "texture": thing.texture, "place": thing.place, **said}),
        tuple(options), answer, images, votes, voters,
        {"size": thing.size, "texture": thing.texture, "background": scene.background},
    )  # fmt: skip


def _votes(scene: Scene, options: list[str], rng: np.random.Generator) -> tuple[tuple[float, ...], int]:
    """Shares in whole per cents, as a public poll prints them, and the number of votes."""
    (thing,) = scene.objects
    scores = np.array([_likeness(option, thing) for option in options])
    scores += rng.normal(0, 0.5, len(options)) - 0.5 * (scene.background == "checked") * scores
    shares = np.exp(scores) / np.exp(scores).sum()
    return tuple(round(float(share), 2) for share in shares), int(rng.integers(2_000, 200_000))


def _likeness(option: str, thing: SceneObject) -> float:
    """The readers' score: shapes of small objects count for little."""
    colour, shape = option.split()
    return 1.2 * (colour == thing.colour) + (1.2 if thing.size == "large" else 0.5) * (shape == thing.shape)


def write_scene_cases(folder: str | Path, count: int = 200, *, leak: float = 0.5, seed: int = 0) -> Path:
    """Write `count` cases of held-out objects with their pictures, and give the file.

    Raises:
        UserError: `leak` is no share, `count` is below 1, or the folder holds something.
    """
    if count < 1:
        raise UserError(f"{count} cases cannot be written; ask for 1 or more")
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise UserError(f"{folder} holds something already; choose another --out")
    folder, world = Path(folder), one_object_world(seed, 1, count)
    files = [Path(f"{PICTURES}/{index:05d}.png") for index in range(count)]
    cases = [scene_case(world, "heldout", index, leak, (file,)) for index, file in enumerate(files)]
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    for index, file in enumerate(files):
        world.image("heldout", index).pil().save(folder / file, format="PNG")
    write_text(folder / FILE, "".join(json.dumps(_row(case)) + "\n" for case in cases))
    return folder / FILE


def _row(case: Case) -> dict[str, Any]:
    row = asdict(case)
    votes = [f"{share:.0%}" for share in row.pop("votes")]
    return {
        **row, "answer": case.options[case.answer], "images": [path.as_posix() for path in case.images], "votes": votes
    }  # fmt: skip
