"""The study of the low-pass: a language model with eyes learns to answer from few tokens, made in three ways.

All arms are the same frozen image encoder (mini/clip, 8 x 8 tokens), the same new connector and the same language model
(mini/lm), which learn the same questions about drawn scenes in the same order, with 4 or 9 tokens a picture:

    dct     the low frequencies of the grid
    pool    means over windows of the grid
    random  tokens dropped at random places, the control
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.data.sample import Sample
from tessera.data.source import Split
from tessera.data.worlds.scenes.questions import Kind
from tessera.evaluate.vqa import normal
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.papers.asking import Asked, AskingBench, Budget, truth
from tessera.reduce.registry import create
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK

SLUG = "fourier-vlm"
SIDES = (2, 3)  # of the grid that is left: 4 and 9 of 64 tokens
WAYS = ("dct", "pool", "random")
METRIC = "accuracy"
WORDS_OF_AN_ANSWER = 4
KINDS: tuple[Kind, ...] = ("colour", "shape", "place")  # answers of which none is common
ENERGY_PICTURES = 200


def arm_of(way: str, side: int) -> str:
    """The arm's name."""
    return f"{way}, {side**2} tokens"


def energy_at(side: int) -> str:
    """The metric's name."""
    return f"energy in the low block over its share of coefficients, {side**2} tokens"


CLAIMS = (
    *(
        Claim(
            name=f"dct beats random dropping with {side**2} tokens", metric=METRIC, arm=arm_of("dct", side),
            against=arm_of("random", side), expect="higher", margin=0.02,
            published="no table of the paper was at hand; Braco: 92.9 % of all tokens' accuracy with 25 of 576",
        )
        for side in SIDES
    ),
    *(
        Claim(
            name=f"pooling is no better than dct with {side**2} tokens", metric=METRIC, arm=arm_of("pool", side),
            against=arm_of("dct", side), expect="not higher", margin=0.02,
            published="no table of the paper was at hand; the low-pass keeps what pooling cancels near the cut-off",
        )
        for side in SIDES
    ),
    *(
        Claim(
            name=f"the low block of {side**2} holds more than twice its share", metric=energy_at(side),
            arm=arm_of("dct", side), against=2.0, expect="higher",
            published="Braco, CLIP with 24 x 24 tokens: 0.51 of the energy in 32 coefficients of 576",
        )
        for side in SIDES
    ),
)  # fmt: skip
NOTES = (
    "Accuracy is that of whole answers, said greedily, to questions about the colour, shape or place of an object"
    " in held-out scenes of one object or two.",
    "Energy is the sum of squares of the encoder's tokens, their mean included, on pictures that differ between seeds.",
    "Random places are drawn anew with each seed and are the same for all pictures of it.",
    "The scenes are of drawn shapes; the published figures are of photographs and of another size.",
)


# About fifteen minutes for three seeds on one core that does nothing else.
BUDGET = Budget(steps=60, train_pictures=4000, heldout_pictures=600)


@dataclass
class Bench(AskingBench):
    """The arms."""

    _energy: dict[int, dict[str, float]] = field(default_factory=dict, init=False)

    def questions(self, split: Split) -> Asked:
        """Those that are learned, or judged by."""
        return Asked(self.world, split, KINDS)

    @cached_property
    def heldout(self) -> list[Sample]:
        """One question about each held-out scene."""
        source = self.questions("heldout")
        return [source[place] for place in range(self.budget.heldout_pictures)]

    def fewer(self, way: str, side: int, seed: int) -> LVLMForConditionalGeneration:
        """The model of an arm, untrained."""
        options = {"seed": seed} if way == "random" else {}
        return self.parts.model(reducer=way, reducer_options=options, keep_side=side)

    @torch.no_grad()
    def answers(self, model: LVLMForConditionalGeneration) -> list[str]:
        """What the model says to each held-out question."""
        found: list[str] = []
        for inputs, images in self.prompts(model, self.heldout):
            said: Any = model.generate(
                **inputs, image_embeds=self.embeds(model, images), do_sample=False,
                max_new_tokens=WORDS_OF_AN_ANSWER, **self.ending,
            )  # fmt: skip
            found += self.said(said[:, inputs["input_ids"].shape[1] :])
        return found

    def energy(self, seed: int) -> dict[str, float]:
        """How much more energy the low blocks hold than as many coefficients would on average."""
        if seed not in self._energy:
            source = self.world.source("pairs")
            number = min(ENERGY_PICTURES, len(source))
            places = np.random.default_rng(seed).choice(len(source), number, replace=False)
            tokens, grid = self.seen([source[place].images[0] for place in places.tolist()])
            whole = tokens.double().square().sum()
            self._energy[seed] = {}
            for side in SIDES:
                low = create("dct")(tokens, (side, side), grid=grid).tokens.double().square().sum()
                self._energy[seed][energy_at(side)] = float(low / whole) * grid[0] * grid[1] / side**2
        return self._energy[seed]

    def outcome(self, way: str, side: int, seed: int) -> Outcome:
        """Trained and judged."""
        learned = partial(self.fewer, way, side, seed)
        model, steps, samples = self.learn(learned, self.questions("train"), seed, [way, side])
        truths = [truth(sample) for sample in self.heldout]
        right = [float(normal(one) == normal(other)) for one, other in zip(self.answers(model), truths, strict=True)]
        metrics = self.energy(seed) if way == "dct" else {}
        return Outcome(metrics=metrics, items={METRIC: right}, steps=steps, samples=samples)

    def study(self) -> Study:
        """All arms and claims."""
        arms = [
            Arm(
                name=arm_of(way, side),
                run=partial(self.outcome, way, side),
                config={"reducer": way, "keep_side": side},
            )
            for side in SIDES
            for way in WAYS
        ]
        return Study(
            slug=SLUG, title="few visual tokens by low-pass, by pooling and by chance (scenes)", arms=arms,
            claims=CLAIMS, config={**self.config, "questions": list(KINDS)}, notes=NOTES,
            tuning="no arm was tuned: steps, rate and margins were set before the first run",
        )  # fmt: skip


def headline(work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn scenes."""
    return Bench(budget, work or WORK / SLUG).study()
