"""The study of eP-ALM: a frozen language model answers questions about pictures, told of them in four ways.

All arms are the same frozen language model (mini/lm) with as many learned tokens before the words, and the same frozen
image encoder (mini/clip). They learn the same questions about drawn scenes of one object in the same order, and
where there is a linear layer it is one:

    injected     class tokens of the last three blocks, before layers 1, 2 and 3 of four
    last level   the last class token alone, before the same layers
    one input    the last class token as one more token before the words, which goes through all layers (PromptFuse)
    prompt       the learned tokens alone, which see nothing
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from tessera.augmented import Augmented
from tessera.data.beside import Beside
from tessera.data.few import First
from tessera.data.sample import Sample, Still, Text
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.evaluate.vqa import normal
from tessera.files import short_hash
from tessera.models.injected import InjectedLMForConditionalGeneration
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.training import trained
from tessera.train.engine import Stage, Trainer
from tessera.train.features import FeatureStore
from tessera.train.injected import injected_stage, look, words_loader
from tessera.train.optim import Optimiser
from tessera.train.select import choose_precision
from tessera.zoo.parts import load_tokenizer, locate, quiet

SLUG = "ep-alm"
VISION, LANGUAGE = "mini/clip", "mini/lm"
METRIC = "accuracy"
WORDS_OF_AN_ANSWER = 8
OPTIMISER: Literal["muon"] = "muon"
# Fields of the model that all arms share, with those of the encoder's pictures, and that of the mini recipe.
MINI: dict[str, Any] = {
    "ask": "USER: {} ASSISTANT:", "prompt_length": 10, "prompt_mlp": False, "shared_connector": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
ONE_OBJECT = (1.0,)  # the chances of one object, two, ...: all that is seen of a picture is one vector
INJECTED: dict[str, Any] = {"levels": 3, "start": 1, "end": 4}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "injected": INJECTED,
    "last level": {**INJECTED, "levels": 1},
    "one input": {"levels": 1, "start": 0, "end": 1},
    "prompt": {**INJECTED, "levels": 0},
}
CLAIMS = (
    Claim(
        name="injection beats the soft prompt alone", metric=METRIC, arm="injected", against="prompt", expect="higher",
        margin=0.05, published="no table of the paper was at hand; a model that sees against one that does not",
    ),
    Claim(
        name="injection beats one input token", metric=METRIC, arm="injected", against="one input", expect="higher",
        margin=0.02, published="better than PromptFuse with frozen unimodal parts; the figures were not at hand",
    ),
    Claim(
        name="several levels beat the last alone", metric=METRIC, arm="injected", against="last level",
        expect="higher", published="six class tokens are what the paper takes; the ablation was not at hand",
    ),
)  # fmt: skip
NOTES = (
    "Accuracy is that of whole answers, said greedily, to questions about held-out scenes.",
    "The loss is on answers alone, summed over a sample's words, in all arms.",
    "The language model has 4 layers where the paper's has 32: three of them take the token, and the last is one.",
    "The scenes are of one drawn shape each; the published figures are of photographs and of another size.",
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets."""

    steps: int = 300
    batch: int = 24
    lr: float = 1e-2
    train_pictures: int = 2000
    questions: int = 500


BUDGET = Budget()


@dataclass
class Bench:
    """The arms.

    Args:
        work: the folder of the study.
    """

    budget: Budget
    work: Path

    @cached_property
    def world(self) -> ScenesWorld:
        """Scenes to learn from and to be judged on."""
        return ScenesWorld(
            counts=ONE_OBJECT, train_pictures=self.budget.train_pictures, heldout_pictures=self.budget.questions
        )

    @cached_property
    def heldout(self) -> list[Sample]:
        """One question about each held-out scene."""
        source = First(self.world.source("questions", "heldout"), self.budget.questions)
        return [source[place] for place in range(len(source))]

    @cached_property
    def tokenizer(self) -> Any:
        """That of the language model."""
        return load_tokenizer(LANGUAGE)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "world": self.world.fingerprint(),
            "parts": [VISION, LANGUAGE],
            "model": MINI,
            "optimiser": OPTIMISER,
            "budget": asdict(self.budget),
            "precision": choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        }

    @cached_property
    def store(self) -> FeatureStore:
        """Class tokens of pictures, which are the same in all arms and seeds."""
        return FeatureStore(partial(look, self.model("injected")))

    def model(self, arm: str) -> InjectedLMForConditionalGeneration:
        """A new connector and prompt between trained parts; PyTorch's generator makes their weights."""
        with quiet():
            return InjectedLMForConditionalGeneration.from_parts(locate(VISION), locate(LANGUAGE), **MINI, **ARMS[arm])

    def stage(self, model: InjectedLMForConditionalGeneration, seed: int) -> Stage:
        """Connector and prompt learn the answers."""
        budget = self.budget
        builder = Beside(self.tokenizer, model.config.ask, model.config.context or 0, questions_learned=False)
        loader = words_loader(self.world.source("questions"), builder, budget.batch, seed=seed)
        return injected_stage(
            model, loader, budget.steps, optimiser=Optimiser(kind=OPTIMISER, lr=budget.lr), store=self.store
        )

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Trained and judged."""
        key = short_hash([arm, ARMS[arm], self.config])
        folder = self.work / "training" / f"{key}-seed-{seed}"

        def stages() -> Iterator[Stage]:
            yield self.stage(self.model(arm), seed)

        trainer = Trainer(folder, config={"key": key}, seed=seed, resume=True)
        with trained(trainer, stages(), self.budget.steps) as run:
            seeing = Augmented(run.model.eval(), self.tokenizer, beams=1, max_new_tokens=WORDS_OF_AN_ANSWER)
            asked, truths = zip(*(_words(sample) for sample in self.heldout), strict=True)
            pictures: list[Still] = [sample.images[0].pil() for sample in self.heldout]
            said = seeing.answer(pictures, list(asked))
        right = [float(normal(one) == normal(truth)) for one, truth in zip(said, truths, strict=True)]
        return Outcome(items={METRIC: right}, steps=run.steps, samples=run.samples)

    def study(self) -> Study:
        """All arms and claims."""
        arms = [Arm(name=name, run=partial(self.outcome, name), config=fields) for name, fields in ARMS.items()]
        return Study(
            slug=SLUG, title="a frozen language model told of pictures by injection, by input and not at all (scenes)",
            arms=arms, claims=CLAIMS, config=self.config, notes=NOTES,
            tuning="two optimisers were tried in short runs of the injected arm and one was kept for all; no arm was"
            " tuned by itself, and layers, steps and margins were set before the first run",
        )  # fmt: skip


def _words(sample: Sample) -> tuple[str, str]:
    """Question and answer."""
    asked, said = (segment.text for segment in sample.segments if isinstance(segment, Text))
    return asked, said


def headline(work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn scenes."""
    return Bench(budget, work or WORK / SLUG).study()
