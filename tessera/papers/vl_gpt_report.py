"""What a training of VL-GPT ends with: the scenes suite against its floors, samples as they came, curves, times."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL

from tessera.assistant import Assistant
from tessera.data.sample import Image, Sample, Segment, Text
from tessera.data.source import World
from tessera.data.worlds import open_world
from tessera.data.worlds.base import EMBEDDED
from tessera.data.worlds.emoji_font import find_font
from tessera.errors import BadSample, UserError
from tessera.evaluate.emoji_suite import NAMES, RECALL, EmojiResult, evaluate_emoji, spread
from tessera.evaluate.intervals import Estimate
from tessera.evaluate.scenes_suite import FRECHET, FRECHET_FLOOR, SuiteResult
from tessera.study.machine import describe_machine, versions
from tessera.study.report import (
    Album,
    Answered,
    Captioned,
    Curve,
    Drawn,
    NextCommand,
    Page,
    Part,
    Reconstruction,
    Report,
    Score,
    StageTime,
    keep_picture,
    thin,
)
from tessera.train.log import read_lines
from tessera.zoo.suites import scenes

SHOWN = 12  # samples of each kind
FLOORS = {
    "caption, 1-2 objects: every colour and shape": 0.85,
    "questions, all types": 0.85,
    "drawing, 1 object: all right": 0.85,
    "drawing, 2 objects: all right": 0.60,
    "reconstruction: every colour and shape": 0.80,
}
# What drawings have right before their outlines: no floor, but the first thing to look at.
HALFWAY = ("drawing, 1 object: colour and place", "drawing, 2 objects: colour and place")
NO_SHARES = ("CIDEr-D", FRECHET, FRECHET_FLOOR)  # scores that are not shown in per cent, by the end of their names
ABOUT = {
    FRECHET: "On features of mini/clip; lower is better. Few pictures make every such distance larger: compare it with"
    " the next line, taken on as many, and not with distances from elsewhere.",
    RECALL: f"Held-out base emoji. Of {NAMES} held-out names those come first whose likelihood as the model's caption"
    " the picture raises most above their average over all pictures shown.",
}
EMOJI = (
    "Pictures that people drew for a font, with the names that people gave them. No variant of these (skin tone,"
    " gender, direction) was in training."
)
ABOVE_MAJORITY = 0.15  # every type of question should beat its majority answer by so much


def write_report(assistant: Assistant, folder: Path, command: str, worlds: Sequence[World], size: int = 200) -> Path:
    """Evaluate, and write `report.json` with its pictures into the run's `folder`."""
    result = scenes(assistant, size)
    emoji = evaluate_emoji(assistant, size) if any(world.name == "emoji" for world in worlds) else None
    scores = list(_scores(result.scores | (emoji.scores if emoji else {})))
    report = Report(
        title="VL-GPT, trained here",
        summary="One causal transformer over words and pictures. Everything below is held out: its scenes are"
        " combinations of colour, shape and place that training never showed.",
        command=command,
        scores=tuple(scores),
        reconstructions=tuple(_reconstructions(result, folder)),
        captions=tuple(_captions(result, folder)),
        answers=tuple(_answers(result, folder)),
        drawings=tuple(_drawings(result, folder)),
        albums=(*_emoji_album(emoji, folder), *_own_albums(assistant, worlds, folder)),
        pages=tuple(_pages(assistant, folder, "story")),
        in_context=tuple(_pages(assistant, folder, "examples")),
        curves=tuple(_curves(folder)),
        stages=tuple(_stage_times(folder)),
        machine=_machine(),
        next_commands=_next(folder / "model"),
    )
    return report.write(folder)


def _scores(scores: dict[str, Estimate]):
    for name, one in scores.items():
        if name.endswith((": majority answer", ": chance")):
            continue
        majority = scores.get(f"{name}: majority answer")
        chance = majority or scores.get(f"{name}: chance")
        floor = FLOORS.get(name)
        if floor is None and majority is not None:
            floor = majority.value + ABOVE_MAJORITY
        yield Score(
            name=name, value=one.value, low=one.low, high=one.high, n=one.n, floor=floor,
            chance=None if chance is None else chance.value, headline=name in (*FLOORS, *HALFWAY),
            percent=not name.endswith(NO_SHARES), higher_is_better=name not in (FRECHET, FRECHET_FLOOR),
            about=ABOUT.get(name, ""),
        )  # fmt: skip


def _keep(folder: Path, picture: np.ndarray | PIL.Image) -> str:
    return keep_picture(folder, PIL.fromarray(picture) if isinstance(picture, np.ndarray) else picture)


def _reconstructions(result: SuiteResult, folder: Path):
    for row in result.reconstructions[:SHOWN]:
        yield Reconstruction(
            original=_keep(folder, row["picture"]), rebuilt=_keep(folder, row["again"]), right=row["right"]
        )


def _captions(result: SuiteResult, folder: Path):
    for row in result.captions[:SHOWN]:
        yield Captioned(picture=_keep(folder, row["picture"]), truth=row["truth"], said=row["said"], right=row["right"])


def _answers(result: SuiteResult, folder: Path):
    for row in result.answers[: 2 * SHOWN]:
        yield Answered(
            picture=_keep(folder, row["picture"]), question=row["question"], truth=row["truth"], said=row["said"],
            right=row["said"] == row["truth"],
        )  # fmt: skip


def _drawings(result: SuiteResult, folder: Path):
    half = len(result.drawings) // 2
    for row in result.drawings[:SHOWN] + result.drawings[half : half + SHOWN]:
        yield Drawn(
            prompt=row["prompt"], picture=_keep(folder, row["picture"]), right=row["right"],
            verdict=f"the reader sees {row['read']}",
        )  # fmt: skip


def _emoji_album(found: EmojiResult | None, folder: Path):
    """Held-out emoji; or, where this machine has none, how to get them."""
    if found is not None:
        said = (
            Captioned(picture=_keep(folder, row["picture"]), truth=row["truth"], said=row["said"])
            for row in found.captions
        )
        drawn = (Drawn(prompt=row["prompt"], picture=_keep(folder, row["picture"])) for row in found.drawings)
        yield Album(title="Emoji it never met", about=EMOJI, captions=tuple(said), drawings=tuple(drawn))
        return
    try:
        find_font()
    except UserError as error:
        yield Album(title="Emoji", about=f"They took no part: {error}.")


def _own_albums(assistant: Assistant, worlds: Sequence[World], folder: Path):
    """Held-out pairs of the user's own data."""
    for world in worlds:
        samples = [] if world.name in EMBEDDED or "pairs" not in world.tasks else _readable(assistant, world)
        if not samples:
            continue
        pictures: list[Any] = [sample.images[0].pil() for sample in samples]
        texts = [sample.text for sample in samples]
        said = (
            Captioned(picture=_keep(folder, picture.resize((64, 64))), truth=text, said=caption)
            for picture, text, caption in zip(pictures, texts, assistant.caption(pictures), strict=True)
        )
        drawn = (
            Drawn(prompt=text, picture=_keep(folder, picture))
            for text, picture in zip(texts, assistant.draw(texts), strict=True)
        )
        yield Album(
            title=Path(world.name).name, about=f"Held out of {world.name}.", captions=tuple(said), drawings=tuple(drawn)
        )


def _readable(assistant: Assistant, world: World) -> list[Sample]:
    """Some held-out pairs, of those that can be read."""
    source, found = world.source("pairs", "heldout"), []
    for index in spread(SHOWN, len(source)):
        with contextlib.suppress(BadSample):
            sample = source[index]
            assistant.draw_prompt(sample.text)  # raises where it is too long
            sample.images[0].pil()
            found.append(sample)
    return found


def _pages(assistant: Assistant, folder: Path, kind: str, count: int = 2):
    """Held-out pages of one kind, cut before their last picture and continued by the model."""
    source = open_world("scenes").source("pages", "heldout")
    chosen = (sample for sample in map(source.__getitem__, range(len(source))) if sample.meta["type"] == kind)
    for sample in itertools.islice(chosen, count):
        last = max(index for index, segment in enumerate(sample.segments) if isinstance(segment, Image))
        # Stories are continued by a picture; lists of examples by the sentence that follows their last picture.
        cut = last if kind == "story" else last + 1
        given = sample.segments[:cut]
        try:
            made = assistant.generate(Sample(given), max_new_tokens=32)
        except UserError:  # longer than the model's context
            continue
        parts = [_part(folder, segment) for segment in given]
        parts += [
            Part(text=one, by_model=True) if isinstance(one, str) else Part(picture=_keep(folder, one), by_model=True)
            for one in made
        ]
        yield Page(title=f"a {kind} of {len(sample.images)} pictures", parts=tuple(parts))


def _part(folder: Path, segment: Segment) -> Part:
    if isinstance(segment, Image):
        return Part(picture=_keep(folder, segment.pil()))
    assert isinstance(segment, Text)
    return Part(text=segment.text)


def _curves(folder: Path):
    series: dict[tuple[str, str], tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for line in read_lines(folder / "metrics.jsonl"):
        for name, value in line.items():
            if name not in ("step", "stage", "loss", "lr", "gradient_norm", "tokens") and isinstance(value, float):
                steps, values = series[line["stage"], name]
                steps.append(int(line["step"]))
                values.append(value)
    for (stage, name), (steps, values) in series.items():
        thinned = thin(steps, values)
        yield Curve(panel=stage, name=name, steps=thinned[0], values=thinned[1])


def _stage_times(folder: Path):
    for stage, lines in itertools.groupby(read_lines(folder / "timings.jsonl"), key=lambda line: line["stage"]):
        seconds = [line["seconds"] for line in lines]
        yield StageTime(name=stage, steps=len(seconds), seconds=sum(seconds))


def _machine() -> dict[str, str]:
    found, named = describe_machine(), versions()
    units = [flag for flag in found["cpu_flags"] if flag.startswith(("amx", "avx512_bf16"))]
    shown = [f"{name} {named[name]}" for name in ("torch", "transformers", "diffusers") if name in named]
    return {
        "processor": f"{found['cpu']}, {found['cores']} cores",
        "memory": f"{found['memory_gib']} GiB",
        "matrix units": ", ".join(units) or "none",
        "versions": ", ".join(shown),
    }


def _next(model: Path) -> tuple[NextCommand, ...]:
    return (
        NextCommand(command=f'tessera draw "a large red star top left" --model {model}', does="draws what you say"),
        NextCommand(command=f"tessera chat --model {model}", does="talks; /image PATH shows it a picture"),
        NextCommand(
            command="tessera train vl-gpt --data MY_FOLDER --out runs/mine", does="trains it on your own pictures"
        ),
    )
