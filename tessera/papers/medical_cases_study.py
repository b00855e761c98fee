"""The study of text and image: a model that learned from both is asked cases whose text says more or less of the
answer.

One model a seed learns cases of drawn objects: which of five is it? It sees the text alone, the picture alone, or both;
the text is a note that says the colour and the shape, each with some chance ("lambda"), and never lies. The arms are
ways to ask that model about the same cases with held-out objects, all through the harness (`tessera.evaluate.cases`):

    image                   the picture and the options
    text, lambda L          the note and the options
    both, lambda L          note, picture and options
    both, wrong note        note at lambda 0, picture, and a second note that names a wrong option
    both, grey picture      note at lambda 1, and a picture that shows nothing

Readers' votes are made up: a softmax over the likeness of options, for which colour counts most (see
`tessera.evaluate.cases.scenes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PIL

from tessera.data.sample import Sample, Segment, Text
from tessera.data.source import Split
from tessera.data.worlds.scenes.world import ScenesSource, ScenesWorld
from tessera.evaluate.cases.human import quartered
from tessera.evaluate.cases.prompting import SEEING, Mode, prompt
from tessera.evaluate.cases.reading import read_cases
from tessera.evaluate.cases.respondents import Loaded
from tessera.evaluate.cases.running import Plan, run
from tessera.evaluate.cases.scenes import FILE, OPTIONS, one_object_world, scene_case, write_scene_cases
from tessera.evaluate.cases.schema import CaseSet
from tessera.evaluate.cases.scoring import QUARTERS, Judged, judge
from tessera.files import atomic_file, atomic_folder, short_hash
from tessera.models.folder import read_folder
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.papers.asking import AskingBench, Budget
from tessera.papers.lvlm_training import pixels_of
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.sharing import prepared
from tessera.vision_chat import VisionChat
from tessera.zoo.parts import quiet

SLUG = "medical-cases"
SIDE = 4  # of the grid of tokens that a picture is brought to, by low-pass: it makes the study cheap
SHOWN: dict[Mode, float] = {"text": 0.25, "image": 0.4, "both": 0.35}  # shares of training
LEAKS = (0.0, 0.5, 1.0)
SEED = 7  # of the objects, apart from those that mini parts were trained on
GREY = (127, 127, 127)
METRIC, NONE = "accuracy", "no response"
EXCESS = "accuracy less readers' votes: on the easiest quarter less on the hardest"
DIFFICULTY = "difficulty, by votes"


def text(leak: float) -> str:
    """The arm's name."""
    return f"text, lambda {leak:g}"


def both(leak: float) -> str:
    """The arm's name."""
    return f"both, lambda {leak:g}"


WRONG, BLANK = "both, wrong note", "both, grey picture"
# Each arm: what is shown, how much the note says, and whether the picture is replaced by a grey one.
ARMS: dict[str, tuple[Mode, float, bool]] = {
    "image": ("image", 0.0, False),
    **{text(leak): ("text", leak, False) for leak in LEAKS},
    **{both(leak): ("both", leak, False) for leak in LEAKS},
    WRONG: ("note", 0.0, False),
    BLANK: ("both", 1.0, True),
}
RISES = "accuracy increased monotonically with the amount of informative text (abstract of the later version)"
CLAIMS = (
    Claim(
        name="some informative text helps", metric=METRIC, arm=both(0.5), against=both(0.0), expect="higher",
        published=RISES,
    ),
    Claim(
        name="more informative text helps more", metric=METRIC, arm=both(1.0), against=both(0.5), expect="higher",
        published=RISES,
    ),
    Claim(
        name="a wrong note takes the answer below that of the image alone", metric=METRIC, arm=WRONG, against="image",
        expect="lower", margin=0.10,
        published="mild suggestions of a wrong diagnosis reduce it dramatically (abstract)",
    ),
    Claim(
        name="a picture of nothing beside text that tells all does not help", metric=METRIC, arm=BLANK,
        against=text(1.0), expect="not higher", margin=0.02, published="80 % to 58 % of 69 long cases (abstract)",
    ),
    Claim(
        name="what the model has over readers shrinks where readers find it easy", metric=EXCESS, arm=both(0.5),
        against=0.0, expect="lower", published="better at every difficulty (abstract); the figures were not at hand",
    ),
    Claim(
        name="options alone give nothing away", metric=METRIC, arm=text(0.0), against=1 / OPTIONS,
        expect="not higher", margin=0.10, published="20 % by guessing; the control of this study",
    ),
)  # fmt: skip
NOTES = (
    "One model a seed serves all arms, which answer the same cases in the same order; no arm trains.",
    "Cases show held-out combinations of colour, shape and place; the note never lies in training.",
    "The excess over readers falls from the hardest to the easiest quarter for every answerer whose hits depend less on"
    " the readers' difficulty than their votes do.",
    "A reply that chooses no option counts as wrong; its share is a metric of its own.",
)
BUDGET = Budget(steps=300, train_pictures=8000, heldout_pictures=200, counts=(1.0,))


class CaseSource(ScenesSource):
    """Cases of a scenes world, each shown in one of the modes of SHOWN with as much said as chance has it."""

    def __init__(self, world: ScenesWorld, split: Split) -> None:
        super().__init__(world, "questions", split)
        self.name = f"{self.name}, cases"

    def __getitem__(self, index: int, /) -> Sample:
        rng = self.world.rng("questions", self.split, index)
        mode: Mode = list(SHOWN)[int(rng.choice(len(SHOWN), p=list(SHOWN.values())))]
        case = scene_case(self.world, self.split, self.picture(index), float(rng.random()))
        order = [int(place) for place in rng.permutation(OPTIONS)]
        asked = prompt(case, mode, order=order, style="bare")
        segments: list[Segment] = [Text(asked.text, learned=False, role="user")]
        if mode in SEEING:
            image = self.world.image(self.split, self.picture(index), learned=False)
            segments.insert(0, replace(image, role="user"))
        answer = Text(case.options[case.answer], role="assistant")
        return Sample((*segments, answer), id=f"{self.name}/{index}", meta={"mode": mode})

    def fingerprint(self) -> str:
        """That of the world's questions, and the modes."""
        return f"{super().fingerprint()}-{short_hash(SHOWN)}"


@dataclass
class Bench(AskingBench):
    """The arms."""

    _models: dict[int, VisionChat] = field(default_factory=dict, init=False)

    @cached_property
    def world(self) -> ScenesWorld:
        """One object a picture, to learn from and to be asked about."""
        return one_object_world(SEED, self.budget.train_pictures, self.budget.heldout_pictures)

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {**self.config, "side": SIDE, "shown": dict(SHOWN), "plan": asdict(self.plan("both"))}

    def plan(self, mode: Mode) -> Plan:
        """How cases are asked: once, the likeliest words, options in another order for each case."""
        return Plan(modes=(mode,), style="bare", together=50)

    def trained(self, seed: int) -> VisionChat:
        """The model of a seed, from its folder where an earlier arm left it."""
        if seed not in self._models:
            kept = self.work / "models" / f"{short_hash(self.shared)}-seed-{seed}"

            def write() -> None:
                make = partial(self.parts.model, reducer="dct", keep_side=SIDE)
                model, _, _ = self.learn(make, CaseSource(self.world, "train"), seed, self.shared)
                with atomic_folder(kept) as aside, quiet():
                    model.save_pretrained(aside)

            prepared(self.work, kept, write)
            found = read_folder(kept, LVLMForConditionalGeneration, torch.float32)
            self._models[seed] = VisionChat(found, self.tokenizer, pixels_of(found))
        return self._models[seed]

    def cases(self, leak: float, grey: bool = False) -> CaseSet:
        """Cases with held-out objects, the same at every leak but for what the note says."""
        number = self.budget.heldout_pictures
        folder = self.work / "cases" / f"{short_hash([self.shared, leak])}"

        def write() -> None:
            with atomic_folder(folder) as aside:
                write_scene_cases(aside, number, leak=leak, seed=SEED)

        def paint() -> None:
            with atomic_file(folder / "grey.png") as aside:
                PIL.new("RGB", (64, 64), GREY).save(aside, format="PNG")

        made = read_cases(prepared(self.work, folder / FILE, write))
        if not grey:
            return made
        file = prepared(self.work, folder / "grey.png", paint)
        return replace(made, cases=tuple(replace(case, images=(file,)) for case in made.cases))

    def asked(self, arm: str, seed: int) -> list[Judged]:
        """What the model of a seed replies to the cases of an arm."""
        mode, leak, grey = ARMS[arm]
        made = self.cases(leak, grey)
        out = self.work / "replies" / f"{short_hash([arm, self.shared])}-seed-{seed}"
        respondent = Loaded(self.trained(seed), f"seed {seed}", length=8)
        return judge(made, run(made, respondent, self.plan(mode), out))

    def outcome(self, arm: str, seed: int) -> Outcome:
        """The replies of an arm, judged."""
        judged = self.asked(arm, seed)
        items = {METRIC: [float(one.right) for one in judged], NONE: [float(one.choice is None) for one in judged]}
        return Outcome(metrics={EXCESS: excess(judged)}, items=items, steps=0, samples=0)

    def study(self) -> Study:
        """All arms and claims."""
        arms = [
            Arm(name=name, run=partial(self.outcome, name), config={"shown": mode, "lambda": leak, "grey": grey})
            for name, (mode, leak, grey) in ARMS.items()
        ]
        return Study(
            slug=SLUG, title="text that says more or less of the answer, beside a picture (drawn objects)", arms=arms,
            claims=CLAIMS, config=self.shared, notes=NOTES,
            tuning="no arm was tuned: steps, rates and margins were set before the first run",
        )  # fmt: skip


def excess(judged: Sequence[Judged]) -> float:
    """Mean of right less the readers' share on the cases that readers find easiest, less the same on the hardest."""
    value, names = QUARTERS[DIFFICULTY]
    levels: Mapping[str, str] = quartered([one.case for one in judged], value, names)

    def mean(level: str) -> float:
        rows = [one.right - float(one.case.human or 0) for one in judged if levels.get(one.case.id) == level]
        return float(np.mean(rows)) if rows else 0.0

    return mean(names[-1]) - mean(names[0])


def headline(work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn objects."""
    return Bench(budget, work or WORK / SLUG).study()
