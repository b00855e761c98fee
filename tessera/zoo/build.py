"""`tessera zoo build NAME`: train a mini part, judge it, and write it with its card."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tessera.errors import UserError, nearest
from tessera.files import atomic_folder, sha256, write_json, write_text
from tessera.study.machine import describe_machine
from tessera.train.stage import Stage
from tessera.zoo.parts import CARD, quiet
from tessera.zoo.recipe import Recipe

RECIPES = {name: f"tessera.zoo.{name}" for name in ("clip", "lm", "autoencoder", "diffusion", "llava", "mae")}


def recipe(name: str) -> Recipe:
    """The recipe of `mini/NAME`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}{nearest(name, RECIPES)}")
    return importlib.import_module(RECIPES[name]).RECIPE


def build(
    name: str,
    out: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    data: Path | None = None,
) -> dict[str, Any]:
    """Train a part in `out`/run and write it, with its card, to `out`/NAME. Returns the card.

    Args:
        data: a folder of files that it learns from too.

    Raises:
        UserError: an unknown part, one that takes no data, or `out` holds a run and `resume` is off.
        DataError: the files are not there.
    """
    from tessera.train.engine import Trainer
    from tessera.train.log import read_lines

    chosen = recipe(name)
    if data is not None:
        if chosen.reading is None:
            raise UserError(f"the recipe of {name} learns from the embedded worlds alone; leave out --data")
        chosen = chosen.reading(data)
    steps = steps or chosen.steps
    out = Path(out)
    trainer = Trainer(out / "run", config={"recipe": name, "steps": steps}, seed=seed, resume=resume)
    stages = []

    def staged():
        made = chosen.stage(seed, steps)
        for stage in [made] if isinstance(made, Stage) else made:
            stages.append(stage)
            yield stage

    trainer.run(staged(), total_steps=steps)
    # Of all steps, also those before the run was resumed.
    seconds = sum(line["seconds"] for line in read_lines(out / "run" / "timings.jsonl"))
    with atomic_folder(out / name) as folder, quiet():
        chosen.save(stages[-1].model, folder)
        made = {"built": f"Built by `tessera zoo build {name}`", "seed": seed, "steps": steps}
        card = judge(chosen, folder) | made | {"seconds": round(seconds), "resumed": resume}
        write_card(card, folder)
    return card


def judge(chosen: Recipe, folder: Path) -> dict[str, Any]:
    """Scores of a saved part on what it never saw, and whether it passes its gates."""
    scores = chosen.scores(folder)
    return {
        "part": f"mini/{chosen.name}",
        "about": chosen.about,
        "machine": describe_machine(),
        "scores": {name: estimate.to_json() for name, estimate in scores.items()},
        "gates": {
            name: {"least": least, "passes": scores[name].value >= least} for name, least in chosen.gates.items()
        },
    }


def write_card(card: dict[str, Any], folder: Path) -> None:
    """`card.json`, and the same as a page, beside the hashes of the files."""
    files = {str(f.relative_to(folder)): sha256(f) for f in sorted(folder.rglob("*.safetensors"))}
    write_json(folder / CARD, card | {"files": files})
    rows = [
        f"| {name} | {score['value']:.4g} | [{score['low']:.4g}, {score['high']:.4g}] | {score['n']} |"
        for name, score in card["scores"].items()
    ]
    lines = [
        f"# {card['part']}", "", card["about"][0].upper() + card["about"][1:] + ".", "",
        f"{card['built']}, seed {card['seed']}, {card['steps']} steps, {card['seconds']} s on"
        f" {card['machine']['cpu']} ({card['machine']['cores']} cores).", "",
        "| held-out score | value | 95 % interval | n |", "|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    write_text(folder / "README.md", "\n".join(lines))
