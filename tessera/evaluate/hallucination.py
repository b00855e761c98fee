"""Whether a model sees what is not there, in scenes whose content is known exactly: questions about objects that are in
a picture and as many about objects that are not, as POPE asks them (2305.10355), and what its captions name, as CHAIR
counts it (1809.02156).

Absent objects asked about are drawn at random ("random"), are those most frequent in all pictures ("popular"), or are
those most often seen together with what is in the picture ("adversarial").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, Literal, Protocol, get_args

import numpy as np

from tessera.data.sample import Sample, question
from tessera.data.source import Split
from tessera.data.worlds.scenes import Scene, ScenesWorld
from tessera.data.worlds.scenes.graph import COLOURS, SHAPES
from tessera.data.worlds.scenes.mentions import mentioned_objects
from tessera.data.worlds.scenes.words import article
from tessera.errors import UserError, nearest
from tessera.evaluate.calibration import expected_calibration_error
from tessera.evaluate.intervals import Estimate, bootstrap, bootstrap_mean, exact_binomial
from tessera.evaluate.posthoc import YES_NO
from tessera.evaluate.scenes_suite import SEED, Answers, Sees, SuiteResult

Strategy = Literal["random", "popular", "adversarial"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
QUESTION = "is there {a}?"
EACH = 3  # objects of either answer asked about a picture, at most


@dataclass(frozen=True, slots=True)
class Probe:
    """A question whether `thing` is in picture `picture`; `answer` is "yes" or "no"."""

    picture: int
    thing: str
    answer: str

    @property
    def text(self) -> str:
        """The question."""
        return QUESTION.format(a=article(self.thing))


def present(scene: Scene) -> list[str]:
    """The objects of a scene by colour and shape, each once, in the order of OBJECTS."""
    return sorted({f"{one.colour} {one.shape}" for one in scene.objects}, key=OBJECTS.index)


def probe_scenes(scenes: Sequence[Scene], strategy: Strategy, *, each: int = EACH, seed: int = 0) -> list[Probe]:
    """Of every scene up to `each` objects that are there and as many that are not: just as many yes as no.

    Frequencies and company are counted over `scenes`; where two are equal, the order of OBJECTS decides.

    Raises:
        UserError: there is no such strategy, or `each` is below 1.
    """
    if strategy not in STRATEGIES:
        raise UserError(
            f"there is no strategy {strategy!r}{nearest(strategy, STRATEGIES)}; known are {', '.join(STRATEGIES)}"
        )
    if each < 1:
        raise UserError(f"each is {each}; ask about at least 1 object of a picture")
    things = [present(scene) for scene in scenes]
    frequency = Counter(thing for some in things for thing in some)
    company = Counter(pair for some in things for pair in permutations(some, 2))
    probes = []
    for number, here in enumerate(things):
        rng = np.random.default_rng((seed, number))
        asked = [here[place] for place in rng.permutation(len(here))[:each]]
        absent = [thing for thing in OBJECTS if thing not in here]
        if strategy == "random":
            absent = [absent[place] for place in rng.permutation(len(absent))]
        elif strategy == "popular":
            absent.sort(key=lambda thing: -frequency[thing])
        else:
            absent.sort(key=lambda thing: -sum(company[seen, thing] for seen in here))  # noqa: B023 (used at once)
        probes += [Probe(number, thing, "yes") for thing in asked]
        probes += [Probe(number, thing, "no") for thing in absent[: len(asked)]]
    return probes


def probe_world(
    world: ScenesWorld, split: Split = "heldout", strategy: Strategy = "random", *, pictures: int = 500, seed: int = 0
) -> list[Sample]:
    """The probes of the first `pictures` pictures of a split as Samples; `meta` has "type", "thing" and "answer".

    Raises:
        UserError: the split has fewer pictures, or as `probe_scenes`.
    """
    if pictures > world.pictures[split]:
        raise UserError(f"the split {split!r} has {world.pictures[split]} pictures, not {pictures}")
    probes = probe_scenes([world.scene(split, number) for number in range(pictures)], strategy, seed=seed)
    return [
        question(
            world.image(split, one.picture),
            one.text,
            one.answer,
            id=f"scenes/probes/{strategy}/{split}/{number}",
            meta={"type": strategy, "thing": one.thing, "answer": one.answer, "picture": one.picture},
        )
        for number, one in enumerate(probes)
    ]


def says_yes(answer: str) -> bool:
    """As POPE reads an answer: no where its first sentence has the word "no" or "not", else yes."""
    return not {"no", "not"} & set(re.findall(r"[a-z']+", answer.split(".")[0].lower()))


@dataclass(frozen=True, slots=True)
class YesNo:
    """Scores of yes-no answers, "yes" being the positive one, each with its interval.

    `precision` is None where no answer is yes; `recall` and `f1` where no truth is. The interval of `f1` is from the
    bootstrap, the others are exact.
    """

    accuracy: Estimate
    precision: Estimate | None
    recall: Estimate | None
    f1: Estimate | None
    yes_share: Estimate

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def yes_no(said: Sequence[bool], truths: Sequence[bool]) -> YesNo:
    """Accuracy, precision, recall, F1 and the share of yes among what was `said`.

    Raises:
        UserError: the two differ in length, or are empty.
    """
    if len(said) != len(truths) or not len(said):
        raise UserError(f"{len(said)} answers and {len(truths)} truths do not belong together")
    yes, true = np.asarray(said, dtype=bool), np.asarray(truths, dtype=bool)
    hits = int((yes & true).sum())
    return YesNo(
        accuracy=exact_binomial(int((yes == true).sum()), len(yes)),
        precision=exact_binomial(hits, int(yes.sum())) if yes.any() else None,
        recall=exact_binomial(hits, int(true.sum())) if true.any() else None,
        f1=bootstrap((yes.astype(float), true.astype(float)), _f1) if true.any() else None,
        yes_share=exact_binomial(int(yes.sum()), len(yes)),
    )


def absent_mentions(caption: str, scene: Scene) -> tuple[int, int]:
    """How many of the objects that a caption names are not in the scene, and how many it names.

    An object is a colour and a shape. One that is named more often than it is there is there; a shape without a colour
    names none. Said again with "the" it is the same mention.
    """
    here, named = present(scene), mentioned_objects(caption)
    return sum(f"{colour} {shape}" not in here for colour, shape, *_ in named), len(named)


@dataclass(frozen=True, slots=True)
class Chair:
    """What captions name that is not there (Rohrbach et al. 2018), each share with its interval.

    `chair_i`: of the objects that are named, those that are not there; None where no caption names any. `chair_s`: of
    the captions, those that name at least one such object. `named`: objects named a caption; one that names nothing is
    never wrong, so look at it beside the others.
    """

    chair_i: Estimate | None
    chair_s: Estimate
    named: Estimate


def chair(captions: Sequence[str], scenes: Sequence[Scene]) -> Chair:
    """CHAIR of a caption of each scene. The intervals of `chair_i` and `named` resample captions.

    Raises:
        UserError: the two differ in length, or are empty.
    """
    if len(captions) != len(scenes) or not len(captions):
        raise UserError(f"{len(captions)} captions and {len(scenes)} scenes do not belong together")
    counts = [absent_mentions(text, scene) for text, scene in zip(captions, scenes, strict=True)]
    absent, named = np.array(counts, dtype=np.float64).T
    return Chair(
        chair_i=bootstrap((absent, named), _share) if named.any() else None,
        chair_s=exact_binomial(int((absent > 0).sum()), len(counts)),
        named=bootstrap_mean(named),
    )


def evaluate_chair(model: Sees, size: int = 200) -> SuiteResult:
    """Suite `chair`: what the captions of held-out pictures name that is not there.

    Args:
        size: pictures.
    """
    world = ScenesWorld(seed=SEED, heldout_pictures=size)
    scenes = [world.scene("heldout", number) for number in range(size)]
    said = model.caption([world.image("heldout", number).pil() for number in range(size)])
    found = chair(said, scenes)
    names = {
        "CHAIR_i: of the objects named, not there": found.chair_i,
        "CHAIR_s: of the captions, with an object that is not there": found.chair_s,
        "objects named a caption": found.named,
    }
    scores = {name: score for name, score in names.items() if score is not None}
    captions = [
        {"truth": ", ".join(present(scene)), "said": text, "absent": absent_mentions(text, scene)[0]}
        for text, scene in zip(said, scenes, strict=True)
    ]
    return SuiteResult(scores=scores, captions=captions)


class Weighs(Protocol):
    """A model that says how likely each of some labels is as its answer."""

    def weigh(
        self, images: list[Any], questions: list[str], labels: Sequence[str], calibrate: str | None = None
    ) -> np.ndarray: ...


def evaluate_probes(model: Answers, size: int = 200, calibrate: str | None = None) -> SuiteResult:
    """Suite `pope`: what `yes_no` says of the answers to the probes of each strategy, on held-out pictures that no
    training shows.

    Args:
        size: pictures, with up to twice EACH questions each for every strategy.
        calibrate: answer by the likelier of yes and no, after what both are with this meaningless picture is taken off
            (`tessera.evaluate.posthoc`); the calibration error of these answers is then a score too.

    Raises:
        UserError: the model cannot say how likely answers are.
    """
    result, world = SuiteResult(), ScenesWorld(seed=SEED, heldout_pictures=size)
    for strategy in STRATEGIES:
        samples = probe_world(world, strategy=strategy, pictures=size)
        asked = [sample.segments[1].text for sample in samples]  # type: ignore[union-attr]
        said, sure = _said(model, [sample.images[0].pil() for sample in samples], asked, calibrate)
        truths = [str(sample.meta["answer"]) for sample in samples]
        found = yes_no([says_yes(one) for one in said], [truth == "yes" for truth in truths])
        scores = {name: score for name in YesNo.__slots__ if (score := getattr(found, name)) is not None}
        if sure is not None:
            right = [one == truth for one, truth in zip(said, truths, strict=True)]
            scores["calibration_error"] = expected_calibration_error(sure, right)
        result.scores |= {f"{strategy}: {name.replace('_', ' ')}": score for name, score in scores.items()}
        result.answers += [
            {"strategy": strategy, "question": question, "truth": truth, "said": text}
            for question, truth, text in zip(asked, truths, said, strict=True)
        ]
    return result


def _said(
    model: Any, pictures: list[Any], questions: list[str], calibrate: str | None
) -> tuple[list[str], np.ndarray | None]:
    """Answers, and where they are calibrated how likely each is [n]."""
    if calibrate is None:
        return model.answer(pictures, questions), None
    if not hasattr(model, "weigh"):
        raise UserError(
            f"the {type(model).__name__} does not say how likely an answer is; leave out the calibration, or take a"
            " language model with eyes, such as mini/llava"
        )
    weighs: Weighs = model
    found = weighs.weigh(pictures, questions, YES_NO, calibrate)
    return [YES_NO[place] for place in found.argmax(1)], found.max(1)


def _share(some: np.ndarray, whole: np.ndarray, axis: int) -> Any:
    return some.sum(axis=axis) / np.maximum(whole.sum(axis=axis), 1)


def _f1(yes: np.ndarray, true: np.ndarray, axis: int) -> Any:
    return 2 * (yes * true).sum(axis=axis) / np.maximum(yes.sum(axis=axis) + true.sum(axis=axis), 1)
