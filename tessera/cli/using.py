"""Commands that use a trained model's folder: caption, ask, draw, sample, reconstruct, chat, classify,
segment, embed, evaluate."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tessera.cli.options import argument, option
from tessera.cli.printing import number, print_json, print_table
from tessera.errors import BadSample, UserError, nearest
from tessera.files import atomic_file, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

_MODEL = "folder that `tessera train` wrote, one of LLaVA as transformers writes it, or mini/llava"
_SHEET = "also write all of them there on one sheet, such as sheet.png"
_CODES = "folder of a model of image codes, as `tessera train vit-vqgan` writes it"
SUITES = {
    "scenes": "tessera.zoo.suites:scenes",
    "emoji": "tessera.evaluate.emoji_suite:evaluate_emoji",
    "pope": "tessera.evaluate.hallucination:evaluate_probes",
    "chair": "tessera.evaluate.hallucination:evaluate_chair",
    "tokenizer": "tessera.evaluate.tokenizer_suite:evaluate_tokenizer",
}
# Suite -> what a model must be able to do for it
NEEDS = {"scenes": ("caption",), "emoji": ("draw", "caption"), "pope": ("ask",), "chair": ("caption",),
         "tokenizer": ("reconstruct",)}  # fmt: skip


def load_able(folder: Path, *commands: str) -> Any:
    """The model of a folder, which must be able to answer `commands`."""
    from tessera.loading import load

    model = load(folder)
    for command in commands:
        if command not in model.abilities:
            able = ", ".join(model.abilities)
            raise UserError(f"the {type(model).__name__} in {folder} does not {command}; it can {able}")
    return model


@dataclass
class _Answering:
    """What commands that answer in words about pictures have in common."""

    model: Path = option(_MODEL)
    debias: Literal["none", "unk", "noise", "zeros", "ones", "both"] | None = option(
        "take off what is said without the picture (none), with an unknown word for it (unk), with noise over it, or"
        " with a blank one (zeros, ones); both is none and unk",
        None,
    )
    alpha: float | None = option("strength of --debias, by default 0.5", None)
    beta: float | None = option(
        "with --debias, the least chance of a word as a share of the best one's, by default 0.1", None
    )

    def _loaded(self, *commands: str) -> Any:
        """The model, which must be able to answer `commands`, debiased where that was asked for."""
        numbers = {name: value for name in ("alpha", "beta") if (value := getattr(self, name)) is not None}
        if self.debias is None:
            if numbers:
                raise UserError(f"--{next(iter(numbers))} is of debiasing; name what to contrast with, --debias none")
            return load_able(self.model, *commands)
        from tessera.generate.debias import Debiasing

        debias = Debiasing(kind=self.debias, **numbers)
        loaded = load_able(self.model, *commands)
        if not hasattr(loaded, "debias"):
            raise UserError(
                f"the {type(loaded).__name__} in {self.model} cannot be debiased; leave out --debias, or take a"
                " language model with eyes, such as mini/llava"
            )
        loaded.debias = debias
        return loaded


def _pictures(paths: tuple[Path, ...]) -> list[Image]:
    """The pictures at `paths`, opened before a model is loaded, so that a bad one costs no time."""
    from tessera.data.images import open_image

    return [open_image(path) for path in paths]


def _words(texts: tuple[str, ...], what: str) -> list[str]:
    """`texts`, looked at before a model is loaded, for the same reason."""
    from tessera.data.quality import check_text

    for place, text in enumerate(texts, start=1):
        try:
            check_text(text)
        except BadSample as error:
            raise UserError(f"{what} {place}: {error}") from None
    return list(texts)


def _save(image: Image, path: Path) -> None:
    """Write a PNG that is whole or absent."""
    with atomic_file(path) as aside:
        image.save(aside, format="PNG")


def _save_sheet(path: Path | None, pictures: list[Image], columns: int | None = None) -> None:
    """Write pictures on one sheet, where one is asked for."""
    from tessera.evaluate.drawing import COLUMNS, sheet

    if path is not None:
        _save(sheet(pictures, columns or COLUMNS), path)


@dataclass
class Caption(_Answering):
    """Say what pictures show, one line each."""

    images: tuple[Path, ...] = argument("pictures", metavar="IMAGE")
    json: bool = option("print JSON", False)

    def run(self) -> None:
        pictures = _pictures(self.images)
        captions = self._loaded("caption").caption(pictures)
        rows = [{"image": str(path), "caption": text} for path, text in zip(self.images, captions, strict=True)]
        if self.json:
            print_json(rows)
        elif len(rows) == 1:
            print(rows[0]["caption"])
        else:
            print_table([tuple(row.values()) for row in rows], ("image", "caption"))


@dataclass
class Ask(_Answering):
    """Answer one or more questions about a picture, or about several together."""

    picture: Path = argument("the picture", metavar="IMAGE")
    questions: tuple[str, ...] = argument("in quotes", metavar="QUESTION")
    image: tuple[Path, ...] = option(
        "further pictures that each question is about; <image> in a question says where each stands", ()
    )
    json: bool = option("print JSON", False)

    def run(self) -> None:
        pictures = _pictures((self.picture, *self.image))
        questions = _words(self.questions, "question")
        model = self._loaded("ask")
        if self.image and "chat" not in model.abilities:
            raise UserError(f"the {type(model).__name__} in {self.model} is asked about one picture; leave out --image")
        shown: Any = pictures if self.image else pictures[0]
        answers = model.answer([shown] * len(questions), questions)
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
    count: int = option("drawings of each text, from one seed after the other", 1, least=1)
    seed: int = option("of the noise that the first drawing starts from", 0, least=0)
    sheet: Path | None = option(f"{_SHEET}, a row for each seed", None, file=True)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        texts, rows = _words(self.texts, "text"), []
        drawn: list[Image] = []
        assistant = load_able(self.model, "draw")
        for seed in range(self.seed, self.seed + self.count):
            images = assistant.draw(texts, seed=seed)
            for place, (text, image) in enumerate(zip(texts, images, strict=True)):
                path = self.out / f"{place:03d}-{seed}.png"
                _save(image, path)
                rows.append({"text": text, "seed": seed, "image": str(path)})
            drawn += images
        _save_sheet(self.sheet, drawn, len(texts))
        if self.json:
            print_json(rows)
        else:
            print_table([(row["image"], row["text"]) for row in rows], ("drawing", "text"))


@dataclass
class Sample:
    """Draw new pictures and write them as PNG files."""

    model: Path = option(_CODES)
    count: int = option("how many", 4, least=1)
    of: str | None = option("the class that they show (default: any)", None)
    seed: int = option("of the draws", 0, least=0)
    temperature: float = option("below 1 the likeliest codes are taken more often, at 0 always", 1.0)
    top_k: int = option("draw among so many of the likeliest codes; 0 for all", 0, least=0)
    top_p: float = option("draw among the fewest codes that are so likely together", 1.0)
    guidance: float = option("above 1: more of the class that --of names, at twice the time", 1.0)
    out: Path = option("folder for the pictures", Path("samples"))
    sheet: Path | None = option(_SHEET, None, file=True)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        from tessera.generate.sampling import Sampling

        sampling = Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        maker = load_able(self.model, "sample")
        drawn = maker.sample(
            self.count, of=self.of, seed=self.seed, sampling=sampling, guidance=self.guidance
        )  # fmt: skip
        rows = []
        for place, picture in enumerate(drawn):
            path = self.out / f"{self.seed}-{place:03d}.png"
            _save(picture, path)
            rows.append({"image": str(path), "of": self.of, "seed": self.seed})
        _save_sheet(self.sheet, drawn)
        if self.json:
            print_json(rows)
        else:
            print_table([(row["image"], row["of"] or "any") for row in rows], ("picture", "of"))


@dataclass
class Reconstruct:
    """Pictures through the model's codes and back, as PNG files of the model's size."""

    images: tuple[Path, ...] = argument("pictures", metavar="IMAGE")
    model: Path = option(_CODES)
    out: Path = option("folder for what comes back", Path("reconstructions"))
    sheet: Path | None = option(f"{_SHEET}, each to the right of its picture", None, file=True)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        pictures = _pictures(self.images)
        rows, pairs = [], list[Any]()
        for place, picture in enumerate(load_able(self.model, "reconstruct").reconstruct(pictures)):
            path = self.out / f"{place:03d}-{self.images[place].stem}.png"
            _save(picture, path)
            rows.append({"image": str(self.images[place]), "reconstruction": str(path)})
            pairs += [pictures[place], picture]
        _save_sheet(self.sheet, pairs)
        if self.json:
            print_json(rows)
        else:
            print_table([tuple(row.values()) for row in rows], ("image", "reconstruction"))


@dataclass
class Chat(_Answering):
    """Talk with a model. Pictures go in as a line `/image PATH`, the first also with --image; drawings come out as
    files."""

    image: tuple[Path, ...] = option("pictures shown with the first words", ())
    out: Path = option("folder for the drawings", Path("drawings"))

    def run(self) -> None:
        from tessera.data.sample import Image, Segment, Text

        first = _pictures(self.image)
        assistant, drawn = self._loaded("chat"), 0
        turns: list[Segment] = []
        for pictures, words in _turns(first):
            before = len(turns)
            turns += [Image(picture, learned=False, role="user") for picture in pictures]
            turns.append(Text(words, learned=False, role="user"))
            streams = hasattr(assistant, "stream")
            try:
                for part in assistant.stream(turns, _say) if streams else assistant.chat(turns):
                    if isinstance(part, str):
                        turns.append(Text(part, role="assistant"))
                        print("" if streams else part)  # what was streamed stands there already
                    else:
                        turns.append(Image(part, role="assistant"))
                        path = self.out / f"chat-{drawn:03d}.png"
                        _save(part, path)
                        print(f"[drawing: {path}]")
                        drawn += 1
            except (BadSample, UserError) as error:
                _slip(error)
                del turns[before:]


def _slip(error: Exception) -> None:
    """Tell a person what was wrong with a line, and go on; a script is told by the exit code."""
    if not sys.stdin.isatty():
        raise error
    print(f"tessera: {error}", file=sys.stderr)


def _say(words: str) -> None:
    """Print words of an answer as they come."""
    print(words, end="", flush=True)


def _turns(pictures: list[Image]) -> Iterator[tuple[list[Image], str]]:
    """The user's turns: pictures named by /image lines, at first after `pictures`, then the line of words that ends the
    turn."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/image "):
            try:
                pictures += _pictures((Path(line.removeprefix("/image ").strip()),))
            except BadSample as error:
                _slip(error)
        elif line:
            yield pictures, line
            pictures = []


@dataclass
class Classify:
    """Say which class pictures show, the likeliest classes first."""

    images: tuple[Path, ...] = argument("pictures", metavar="IMAGE")
    model: Path = option(_MODEL)
    top: int = option("classes to name of each picture", 3, least=1)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        pictures = _pictures(self.images)
        found = load_able(self.model, "classify").classify(pictures, top=self.top)
        rows = [
            {"image": str(path), "classes": [{"class": name, "probability": share} for name, share in guesses]}
            for path, guesses in zip(self.images, found, strict=True)
        ]
        if self.json:
            print_json(rows)
            return
        lines = [", ".join(f"{name} {share:.1%}" for name, share in guesses) for guesses in found]
        print_table(list(zip(self.images, lines, strict=True)), ("image", "classes"))


@dataclass
class SegmentImages:
    """Write a PNG file of each picture, of its size, by what the model was trained for: numbers of classes with a
    palette; 255 where the thing is that --phrase names, else 0; or depth in thousandths (millimetres of metres), 16
    bits."""

    images: tuple[Path, ...] = argument("pictures", metavar="IMAGE")
    model: Path = option("folder of a perception model, as `tessera train vpd` writes it")
    phrase: str | None = option("what to find, for a model that finds what phrases name", None)
    scene: str | None = option("the kind of scene, for a model of depth that knows several", None)
    out: Path = option("folder for what is seen", Path("segmented"))
    sheet: Path | None = option(
        f"{_SHEET}, each to the right of its picture; what is nearest is white", None, file=True
    )
    json: bool = option("print JSON", False)

    def run(self) -> None:
        from tessera.evaluate.drawing import to_look_at

        pictures, rows = _pictures(self.images), []
        pairs: list[Image] = []
        for place, (drawn, about) in enumerate(self._seen(load_able(self.model, "segment"), pictures)):
            path = self.out / f"{place:03d}-{self.images[place].stem}.png"
            _save(drawn, path)
            rows.append({"image": str(self.images[place]), "file": str(path), **about})
            pairs += [pictures[place], to_look_at(drawn)]
        _save_sheet(self.sheet, pairs)
        if self.json:
            print_json(rows)
            return
        lines = [", ".join(f"{name} {number(value)}" for name, value in row["seen"].items()) for row in rows]
        print_table([(row["image"], row["file"], line) for row, line in zip(rows, lines, strict=True)],
                    ("image", "file", "seen"))  # fmt: skip

    def _seen(self, perceiver: Any, pictures: list[Image]) -> list[tuple[Image, dict[str, Any]]]:
        """A PNG file's picture for each, and what to say of it."""
        from tessera.evaluate.drawing import depth_png, labels_png, mask_png, shares

        for name, task in (("phrase", "referring"), ("scene", "depth")):
            if getattr(self, name) is not None and perceiver.task != task:
                raise UserError(f"--{name} is of {task}, and the model in {self.model} is of {perceiver.task}")
        if perceiver.task == "depth":
            return [
                (depth_png(one), {"seen": {"nearest": float(one.min()), "furthest": float(one.max())}})
                for one in perceiver.depth(pictures, self.scene)
            ]
        if perceiver.task == "segmentation":
            found = [(labels_png(one), shares(one, perceiver.classes)) for one in perceiver.segment(pictures)]
            return [(drawn, {"seen": about}) for drawn, about in found]
        if self.phrase is None:
            raise UserError("this model finds what a phrase names; give --phrase")
        masks = perceiver.refer(pictures, [self.phrase] * len(pictures))
        return [(mask_png(one), {"seen": {self.phrase: float(one.mean())}}) for one in masks]


@dataclass
class Embed:
    """Pictures, or with --text sentences, as vectors of one space: JSON, or a safetensors file."""

    inputs: tuple[str, ...] = argument("pictures, or sentences in quotes", metavar="INPUT")
    model: Path = option(_MODEL)
    text: bool = option("the inputs are sentences", False)
    out: Path | None = option("write the vectors [N, D] there as `embeddings` of a safetensors file", None, file=True)

    def run(self) -> None:
        inputs = _words(self.inputs, "text") if self.text else _pictures(tuple(Path(name) for name in self.inputs))
        vectors = load_able(self.model, "embed").embed(inputs)
        if self.out is None:
            pairs = zip(self.inputs, vectors.tolist(), strict=True)
            print_json([{"input": name, "vector": vector} for name, vector in pairs])
            return
        from safetensors.numpy import save_file

        with atomic_file(self.out) as aside:
            save_file({"embeddings": vectors}, aside)
        print(f"{len(vectors)} vectors of {vectors.shape[1]}: {self.out}")


@dataclass
class Evaluate(_Answering):
    """Score a model on held-out samples; every score comes with a 95 % interval."""

    suite: str = option("which scores: " + ", ".join(SUITES), "scenes")
    size: int = option("pictures of the suite's first part; the others are in proportion", 200, least=1)
    calibrate: Literal["none", "unk", "noise", "zeros", "ones", "both"] | None = option(
        "pope: answer by the likelier of yes and no, each divided by what it is without a meaningful picture (as"
        " --debias names them)",
        None,
    )
    out: Path | None = option("also write the result there as JSON", None, file=True)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        if self.suite not in SUITES:
            raise UserError(f"there is no suite {self.suite!r}{nearest(self.suite, SUITES)}")
        self._check_calibration()
        module, _, function = SUITES[self.suite].partition(":")
        model = self._loaded("evaluate", *NEEDS[self.suite])
        options = {} if self.calibrate is None else {"calibrate": self.calibrate}
        measured = getattr(import_module(module), function)(model, self.size, **options)
        scores = {name: estimate.to_json() for name, estimate in measured.scores.items()}
        result = {"suite": self.suite, "size": self.size, "model": str(self.model), **self._asked(), "scores": scores}
        if self.out is not None:
            write_json(self.out, result)
        if self.json:
            print_json(result)
            return
        rows = [
            (name, number(one["value"]), f"[{number(one['low'])}, {number(one['high'])}]", number(one["n"]))
            for name, one in scores.items()
        ]
        print_table(rows, ("score", "value", "95 % interval", "samples"))

    def _check_calibration(self) -> None:
        if self.calibrate is None:
            return
        if self.suite != "pope":
            raise UserError(f"--calibrate is of answers yes or no; take --suite pope, not {self.suite}")
        if self.debias is not None:
            raise UserError("--calibrate and --debias take the same prior off twice; give one of them")

    def _asked(self) -> dict[str, Any]:
        """How its answers were changed, for the result."""
        names = ("debias", "alpha", "beta", "calibrate")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
