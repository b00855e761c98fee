"""What Tessera keeps in stock: `tessera zoo …` and `tessera worlds …`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tessera.cli.options import argument, option
from tessera.cli.printing import number, print_json, print_table
from tessera.errors import UserError
from tessera.files import atomic_file

if TYPE_CHECKING:
    from PIL import Image as PIL

    from tessera.data.sample import Sample


@dataclass
class ZooList:
    """The mini parts that ship with the package, with the scores on their cards."""

    json: bool = option("print JSON", False)

    def run(self) -> None:
        from tessera.zoo.parts import list_parts

        cards = list_parts()
        if self.json:
            print_json(cards)
            return
        rows = []
        for card in cards:
            name = card["name"]
            for what, score in (card.get("scores") or {"-": {}}).items():
                within = f"{number(score['low'])} to {number(score['high'])}" if "low" in score else ""
                rows.append((name, what, number(score.get("value", "")), within))
                name = ""  # once for all of its scores
        print_table(rows, ("part", "held-out score", "value", "95 % interval"))


@dataclass
class ZooBuild:
    """Train mini parts from the embedded worlds: an hour or two each on two cores, minutes on a GPU."""

    names: tuple[str, ...] = argument("clip, lm, autoencoder, diffusion, llava, mae", metavar="NAME")
    out: Path = option("folder for the runs and the parts", Path("runs/zoo"))
    seed: int = option("of every random draw", 0, least=0)
    steps: int | None = option("length of the training (default: the recipe's)", None, least=1)
    resume: bool = option("go on where a run in --out was left", False)
    data: Path | None = option("llava: folder of nlvr-dev.tar and nlvr-test.tar, to learn from and be judged by", None)

    def run(self) -> None:
        from tessera.zoo.build import build

        for name in self.names:
            card = build(
                name, self.out / name, seed=self.seed, steps=self.steps, resume=self.resume, data=self.data
            )  # fmt: skip
            gates = card.get("gates", {})
            failed = [gate for gate, verdict in gates.items() if not verdict["passes"]]
            print(f"{name}: {self.out / name / name}" + (f"; misses its gates {', '.join(failed)}" if failed else ""))


@dataclass
class WorldsList:
    """The embedded worlds, and what each can give."""

    json: bool = option("print JSON", False)

    def run(self) -> None:
        from tessera.data.worlds.base import open_world, world_names

        rows: list[dict[str, Any]] = []
        for name in world_names():
            try:
                world = open_world(name)
                tasks = {
                    task: {split: len(world.source(task, split)) for split in ("train", "heldout")}
                    for task in world.tasks
                }
                rows.append({"name": name, "here": True, "tasks": tasks})
            except UserError as error:  # no emoji font on this machine
                rows.append({"name": name, "here": False, "reason": str(error)})
        if self.json:
            print_json(rows)
            return
        for row in rows:
            if not row["here"]:
                print(f"{row['name']}: not on this machine: {row['reason']}")
                continue
            print(row["name"])
            counts = [(f"  {task}", number(n["train"]), number(n["heldout"])) for task, n in row["tasks"].items()]
            print_table(counts, ("  task", "train", "held out"))


@dataclass
class WorldsShow:
    """Samples of a world: their words here, their pictures on one sheet."""

    name: str = argument("scenes, emoji, tabletop, or a path of your files")
    task: str | None = option("pairs, questions, edits, pages, episodes, … (default: the world's first)", None)
    split: Literal["train", "heldout"] = option("which part of the world", "train")
    count: int = option("how many samples", 8, least=1)
    out: Path = option("the sheet", Path("world.png"), file=True)

    def run(self) -> None:
        from tessera.data.worlds.base import open_world
        from tessera.evaluate.drawing import sheet

        world = open_world(self.name)
        source = world.source(self.task or world.tasks[0], self.split)
        step = max(1, len(source) // self.count)
        samples = [source[index] for index in islice(range(0, len(source), step), self.count)]
        for sample in samples:
            print(f"{sample.id}: {sample.text}")
        pictures = [picture for sample in samples for picture in stills(sample)]
        if pictures:
            with atomic_file(self.out) as aside:
                sheet(pictures).save(aside, format="PNG")
            print(f"pictures: {self.out}")


def stills(sample: Sample) -> list[PIL.Image]:
    """The pictures of a sample; of a film, a row of them."""
    from tessera.evaluate.drawing import film_row

    found = [image.pil() for image in sample.images]
    for film in sample.films:
        found += film_row(film.frames)
    return found


@dataclass
class WorldsExport:
    """Write a task of a world in a form that `tessera train --data` and others' tools read.

    Words and pictures become WebDataset shards, episodes a LeRobot data set.
    """

    name: str = argument("scenes, emoji, tabletop, or a path of your files")
    out: Path = option("folder for the shards or the data set")
    task: str | None = option("pairs, questions, edits, pages, episodes, … (default: the world's first)", None)
    split: Literal["train", "heldout"] = option("which part of the world", "train")
    count: int | None = option("how many samples (default: all)", None, least=1)
    shard: int = option("samples in a shard", 1000, least=1)

    def run(self) -> None:
        from tessera.data.worlds.base import open_world
        from tessera.data.worlds.export import write_episodes, write_shards

        world = open_world(self.name)
        source = world.source(self.task or world.tasks[0], self.split)
        if (self.task or world.tasks[0]) == "episodes":
            written, frames, skipped = write_episodes(source, self.out, count=self.count)
            what = f"{written} episodes of {number(frames)} frames"
        else:
            shards, written, skipped = write_shards(source, self.out, count=self.count, size=self.shard)
            what = f"{written} samples in {shards} shards"
        print(f"{what}: {self.out}" + (f"; {skipped} skipped" if skipped else ""))
