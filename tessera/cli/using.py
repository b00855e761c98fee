"""Commands that use a trained model's folder: caption, ask, draw, chat, embed, evaluate."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.cli.options import argument, option
from tessera.cli.printing import number, print_json, print_table
from tessera.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_MODEL = "folder that `tessera train` wrote"


def _load(folder: Path) -> Any:
    """The assistant of a model folder."""
    from tessera.assistant import load

    return load(folder)


def _pictures(paths: tuple[Path, ...]) -> list[Image]:
    """The pictures at `paths`, opened before a model is loaded, so that a bad one costs no time."""
    from tessera.data.images import open_image

    return [open_image(path) for path in paths]


def _save(image: Image, path: Path) -> None:
    """Write a PNG that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing")
    try:
        image.save(aside, format="PNG")
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


@dataclass
class Caption:
    """Say what pictures show, one line each."""

    images: tuple[Path, ...] = argument("pictures", metavar="IMAGE")
    model: Path = option(_MODEL)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        pictures = _pictures(self.images)
        captions = _load(self.model).caption(pictures)
        rows = [
            {"image": str(path), "caption": text} for path, text in zip(self.images, captions, strict=True)
        ]
        if self.json:
            print_json(rows)
        elif len(rows) == 1:
            print(rows[0]["caption"])
        else:
            print_table([tuple(row.values()) for row in rows], ("image", "caption"))


@dataclass
class Ask:
    """Answer one or more questions about a picture."""

    image: Path = argument("the picture")
    questions: tuple[str, ...] = argument("in quotes", metavar="QUESTION")
    model: Path = option(_MODEL)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        pictures = _pictures((self.image,)) * len(self.questions)
        answers = _load(self.model).answer(pictures, list(self.questions))
        rows = [{"question": ask, "answer": said} for ask, said in zip(self.questions, answers, strict=True)]
        if self.json:
            print_json(rows)
        elif len(rows) == 1:
            print(rows[0]["answer"])
        else:
            print_table([tuple(row.values()) for row in rows], ("question", "answer"))


@dataclass
class Draw:
    """Draw what each sentence says, and write PNG files."""

    texts: tuple[str, ...] = argument("what to draw, in quotes", metavar="TEXT")
    model: Path = option(_MODEL)
    out: Path = option("folder for the drawings", Path("drawings"))
    count: int = option("drawings of each text", 1)
    seed: int = option("of the noise that drawings start from", 0)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        if self.count < 1:
            raise UserError(f"--count {self.count} draws nothing; give 1 or more")
        texts = [text for text in self.texts for _ in range(self.count)]
        images = _load(self.model).draw(texts, seed=self.seed)
        rows = []
        for place, (text, image) in enumerate(zip(texts, images, strict=True)):
            path = self.out / f"{self.seed}-{place:03d}.png"
            _save(image, path)
            rows.append({"text": text, "image": str(path)})
        if self.json:
            print_json(rows)
        else:
            print_table([tuple(row.values())[::-1] for row in rows], ("drawing", "text"))


@dataclass
class Chat:
    """Talk with a model. Pictures go in as a line `/image PATH`; drawings come out as files."""

    model: Path = option(_MODEL)
    out: Path = option("folder for the drawings", Path("drawings"))

    def run(self) -> None:
        assistant, turns, drawn = _load(self.model), [], 0
        for parts in _turns():
            turns.append({"role": "user", "content": parts})
            reply = assistant.chat(turns)
            turns.append({"role": "assistant", "content": reply})
            for part in reply:
                if isinstance(part, str):
                    print(part)
                else:
                    path = self.out / f"chat-{drawn:03d}.png"
                    _save(part, path)
                    print(f"[drawing: {path}]")
                    drawn += 1


def _turns() -> Iterator[list[Any]]:
    """The user's turns: pictures named by /image lines, then the line of words that ends the turn."""
    prompt = "> " if sys.stdin.isatty() else ""
    parts: list[Any] = []
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/image "):
            parts += _pictures((Path(line.removeprefix("/image ").strip()),))
        elif line:
            yield [*parts, line]
            parts = []


@dataclass
class Embed:
    """Pictures, or with --text sentences, as vectors of one space: JSON, or a safetensors file."""

    inputs: tuple[str, ...] = argument("pictures, or sentences in quotes", metavar="INPUT")
    model: Path = option(_MODEL)
    text: bool = option("the inputs are sentences", False)
    out: Path | None = option("write the vectors [N, D] there as `embeddings` of a safetensors file", None)

    def run(self) -> None:
        import numpy as np

        images = None if self.text else _pictures(tuple(Path(name) for name in self.inputs))
        assistant = _load(self.model)
        found = assistant.embed(texts=list(self.inputs)) if images is None else assistant.embed(images=images)
        vectors = np.asarray(found, dtype=np.float32)
        if self.out is None:
            pairs = zip(self.inputs, vectors.tolist(), strict=True)
            print_json([{"input": name, "vector": vector} for name, vector in pairs])
            return
        from safetensors.numpy import save_file

        self.out.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeddings": vectors}, self.out)
        print(f"{len(vectors)} vectors of {vectors.shape[1]}: {self.out}")


@dataclass
class Evaluate:
    """Score a model on held-out samples; every score comes with a 95 % interval."""

    model: Path = option(_MODEL)
    suite: str = option("which scores, as in scenes", "scenes")
    limit: int | None = option("samples of each score (default: the suite's)", None)
    seed: int = option("of the samples' choice and of drawings", 0)
    out: Path | None = option("also write the result there as JSON", None)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        from tessera.evaluate.suites import run_suite
        from tessera.files import write_json

        result = run_suite(_load(self.model), self.suite, limit=self.limit, seed=self.seed)
        if self.out is not None:
            write_json(self.out, result)
        if self.json:
            print_json(result)
            return
        rows = [
            (name, number(one["value"]), f"[{number(one['low'])}, {number(one['high'])}]", number(one["n"]))
            for name, one in result["scores"].items()
        ]
        print_table(rows, ("score", "value", "95 % interval", "samples"))
