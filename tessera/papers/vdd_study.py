"""The study of debiasing: a language model with eyes has learned that the answer is mostly yes, and is asked questions
to which it is as often no.

Two models a seed go on from mini/llava, which knows what drawn scenes show, with captions and questions whether an
object is there: one ("skewed") hears yes in 85 of 100 answers, the other ("even") in 50. Nothing is trained after that.
The arms are ways to answer the same probes, as POPE asks them (2305.10355), as many about objects that are there as
about objects that are not, these drawn at random, from the most frequent, or from those most often seen together with
what is there:

    naive             the likelier of yes and no
    post-hoc, KIND    the same, divided by what the model says without a meaningful picture: none (no picture), unk (one
                      unknown word for it), both, noise, zeros (a grey one)
    sampled           a word drawn at temperature 1
    sampled, none     the same by visual debias decoding: contrasted with what is said without a picture
    sampled, noise    the same, contrasted with what is said to a noised picture: visual contrastive decoding
    even, ...         the even model, naive and post-hoc

The sampled arms write a caption of each picture too, in the same way; CHAIR counts what these name that is not there
(1809.02156).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from tessera.data.conversation import ConversationBuilder
from tessera.data.mixture import Mixture
from tessera.data.sample import Sample, pair, question
from tessera.data.source import Split
from tessera.data.tasks import Mapped, caption
from tessera.data.worlds.scenes.captions import canonical_caption
from tessera.data.worlds.scenes.words import article, pick
from tessera.data.worlds.scenes.world import ScenesSource, ScenesWorld
from tessera.evaluate.calibration import expected_calibration_error
from tessera.evaluate.hallucination import (
    OBJECTS,
    QUESTION,
    STRATEGIES,
    absent_mentions,
    chair,
    present,
    probe_world,
    says_yes,
    yes_no,
)
from tessera.evaluate.posthoc import YES_NO, label_probabilities, label_words, language_prior, post_hoc, shares
from tessera.files import atomic_folder, sha256, short_hash
from tessera.generate.debias import VisualDebias
from tessera.generate.meaningless import CALIBRATION_STEP, DECODING_STEP, Inputs, meaningless
from tessera.models.folder import read_folder
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.papers.asking import AskingBench, Budget, truth
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.sharing import prepared
from tessera.vision_chat import VisionChat
from tessera.zoo.parts import locate, quiet
from tessera.zoo.upon import load as load_upon

SLUG = "vdd"
SKEWED, EVEN = 0.85, 0.5  # shares of yes among the answers that a model learns from
START = "mini/llava"
CAPTIONS = 0.5  # captions for each question: they teach what things look like
ALPHA, BETA = 1.0, 0.2  # as the published command for POPE has them
PRIORS = ("none", "unk", "both", "noise", "zeros")
METRIC, YES, F1, ERROR = "accuracy", "yes share", "F1", "calibration error"
BLIND = "chance of yes without the picture"
CHAIR_I, CHAIR_S, NAMED = "CHAIR_i", "CHAIR_s", "objects named a caption"
LONGEST = 40  # tokens of a caption


def after(prior: str) -> str:
    """The arm's name."""
    return f"post-hoc, {prior}"


def sampled(prior: str) -> str:
    """The arm's name."""
    return f"sampled, {prior}"


# Each arm: the share of yes in what its model learned from, and how it answers: a prior to divide by or None, or a
# draw and what it is contrasted with, or None.
ARMS: dict[str, tuple[float, str, str | None]] = {
    "naive": (SKEWED, "likelier", None),
    **{after(prior): (SKEWED, "likelier", prior) for prior in PRIORS},
    "sampled": (SKEWED, "drawn", None),
    sampled("none"): (SKEWED, "drawn", "none"),
    sampled("noise"): (SKEWED, "drawn", "noise"),
    "even, naive": (EVEN, "likelier", None),
    "even, post-hoc, none": (EVEN, "likelier", "none"),
}
LESS = "less hallucination (abstract); the tables could not be read"
CLAIMS = (
    Claim(
        name="debiasing after the fact raises accuracy", metric=METRIC, arm=after("none"), against="naive",
        expect="higher", published=LESS,
    ),
    Claim(
        name="debiasing after the fact raises F1", metric=F1, arm=after("none"), against="naive", expect="higher",
        published=LESS,
    ),
    Claim(
        name="debiasing after the fact lowers the share of yes", metric=YES, arm=after("none"), against="naive",
        expect="lower", margin=0.05, published=LESS,
    ),
    *(
        Claim(
            name=f"{prior} shows the prior better than a grey picture", metric=METRIC, arm=after(prior),
            against=after("zeros"), expect="higher", published="the pictures left out, or an unknown word for them",
        )
        for prior in ("none", "unk")
    ),
    Claim(
        name="visual debias decoding raises the accuracy of sampled answers", metric=METRIC, arm=sampled("none"),
        against="sampled", expect="higher", published=LESS,
    ),
    Claim(
        name="visual debias decoding lowers the share of yes in sampled answers", metric=YES, arm=sampled("none"),
        against="sampled", expect="lower", margin=0.05, published=LESS,
    ),
    Claim(
        name="visual debias decoding lowers the share of captions that name what is not there", metric=CHAIR_S,
        arm=sampled("none"), against="sampled", expect="lower", published=LESS,
    ),
    Claim(
        name="where nothing is skewed there is nothing to gain", metric=METRIC, arm="even, post-hoc, none",
        against="even, naive", expect="within", margin=0.02, published="none; the control of this study",
    ),
)  # fmt: skip
NOTES = (
    "The answers are to the same probes in all arms; what is there is asked about once with each strategy.",
    "The arms train nothing: one skewed and one even model a seed serve them all. Both go on from mini/llava. Earlier"
    " designs trained them from a new connector in as many steps; such models answered no better than a coin, so that"
    " there was nothing to debias.",
    "The tokenizer of mini/lm has no unknown word; the word for padding, which it never learned, stands for it.",
    "Sampled answers are one word long; alpha 1 and beta 0.2, as the published command for POPE has them.",
    "Chance of yes without the picture: the mean over the probes of what is taken off. To a model that sees, no picture"
    " shows nothing, so that nothing is there, however many answers it has learned were yes.",
    "CHAIR_i: of the objects (colour and shape) that sampled captions name, those not there; CHAIR_s: of the captions,"
    " those that name one. Captions were not skewed in training; one that names nothing is never wrong: see the objects"
    " named a caption.",
    "Frequencies and company of drawn objects are nearly uniform, so that the three strategies differ little here.",
)
# About ten minutes for three seeds on one core that does nothing else, most of it the six trainings.
BUDGET = Budget(steps=90, train_pictures=4000, heldout_pictures=120)


class Existence(ScenesSource):
    """Questions as the probes ask them about the pictures of a scenes world, with a set share of yes."""

    def __init__(self, world: ScenesWorld, split: Split, yes_share: float) -> None:
        super().__init__(world, "questions", split)
        self.name, self.yes_share = f"{self.name}, {yes_share:.0%} yes", yes_share

    def __getitem__(self, index: int, /) -> Sample:
        scene, image = self.shown(index)
        rng, there = self.world.rng("questions", self.split, index), present(scene)
        yes = bool(rng.random() < self.yes_share)
        thing = pick(rng, there if yes else [one for one in OBJECTS if one not in there])
        return question(image, QUESTION.format(a=article(thing)), YES_NO[not yes], id=f"{self.name}/{index}")

    def fingerprint(self) -> str:
        """That of the world's questions, and the share."""
        return f"{super().fingerprint()}-{self.yes_share}"


@dataclass
class Bench(AskingBench):
    """The arms."""

    _models: dict[tuple[float, int], LVLMForConditionalGeneration] = field(default_factory=dict, init=False)
    _first: dict[tuple[float, int, str | None], Tensor] = field(default_factory=dict, init=False)

    def start(self) -> VisionChat:
        """What both models go on from; a new one each time, since it is trained."""
        return load_upon(locate(START))

    @cached_property
    def eyes(self) -> LVLMForConditionalGeneration:
        """A model of which only the encoder is used, and the layers that its connector reads."""
        return self.start().model.eval()

    def builder(self, model: LVLMForConditionalGeneration) -> ConversationBuilder:
        """Questions as that model has learned to read them."""
        return ConversationBuilder(
            self.tokenizer, model.num_image_tokens(), self.budget.row_length, chat_template=self.template
        )

    @cached_property
    def template(self) -> str:
        """How it reads dialogues."""
        return str(self.start().tokenizer.chat_template)

    @cached_property
    def probes(self) -> list[Sample]:
        """Those of all strategies about the held-out pictures."""
        number = self.budget.heldout_pictures
        return [one for way in STRATEGIES for one in probe_world(self.world, strategy=way, pictures=number)]

    @cached_property
    def labels(self) -> list[list[int]]:
        """The words that say yes, and no."""
        return label_words(self.tokenizer, YES_NO)

    def trained(self, skew: float, seed: int) -> LVLMForConditionalGeneration:
        """The model that has learned from so large a share of yes, from its folder where an earlier run left it."""
        if (skew, seed) not in self._models:
            kept = self.work / "models" / f"{short_hash([skew, self.shared])}-seed-{seed}"

            def write() -> None:
                source = Mixture(
                    [
                        (Existence(self.world, "train", skew), 1.0),
                        (Mapped(self.world.source("pairs"), caption), CAPTIONS),
                    ]
                )
                model, _, _ = self.learn(lambda: self.start().model, source, seed, [skew, self.shared])
                with atomic_folder(kept) as aside, quiet():
                    model.save_pretrained(aside)

            prepared(self.work, kept, write)
            self._models[skew, seed] = read_folder(kept, LVLMForConditionalGeneration, torch.float32)
        return self._models[skew, seed]

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        start = sha256(Path(locate(START)) / "model.safetensors")
        return {**self.config, "start": start, "captions": CAPTIONS, "alpha": ALPHA, "beta": BETA}

    @cached_property
    def described(self) -> list[Sample]:
        """A request for a caption of every held-out picture."""
        found, world = [], self.world
        for number in range(self.budget.heldout_pictures):
            shown, told = world.image("heldout", number), canonical_caption(world.scene("heldout", number))
            found.append(caption(pair(shown, told, id=f"scenes/{number}"), world.rng("pairs", "heldout", number)))
        return found

    def shown(self, model: LVLMForConditionalGeneration, samples: Sequence[Sample]) -> list[Inputs]:
        """Samples as `generate` takes them, some together."""
        return [
            {**inputs, "pixel_values": self.pixels(images).to(model.device)}
            for inputs, images in self.prompts(model, samples)
        ]

    def blind(
        self, model: LVLMForConditionalGeneration, inputs: Inputs, prior: str, step: int, seed: int
    ) -> list[Inputs]:
        """The same without a meaningful picture."""
        return meaningless(
            inputs, prior, image_token_id=model.config.image_token_id, unk_token_id=self.tokenizer.pad_token_id,
            noise_step=step, seed=seed,
        )  # fmt: skip

    def first(self, skew: float, context: str | None, seed: int) -> Tensor:
        """Probabilities of yes and no [n, 2] where the answer to every probe begins, which need not sum to 1.

        Args:
            context: a meaningless picture; None for the probes' own.
        """
        if (skew, seed, context) not in self._first:
            model, found = self.trained(skew, seed), []
            for inputs in self.shown(model, self.probes):
                (given,) = [inputs] if context is None else self.blind(model, inputs, context, CALIBRATION_STEP, seed)
                said: Any = model.generate(
                    **given, do_sample=False, max_new_tokens=1, return_dict_in_generate=True, output_logits=True,
                    **self.ending,
                )  # fmt: skip
                found.append(label_probabilities(said.logits[0].float().cpu(), self.labels))
            self._first[skew, seed, context] = torch.cat(found)
        return self._first[skew, seed, context]

    def likelier(self, skew: float, prior: str | None, seed: int) -> Tensor:
        """Shares of yes and no [n, 2] of every probe, debiased by a prior where one is named."""
        answers = shares(self.first(skew, None, seed))
        return answers if prior is None else post_hoc(answers, self.prior(skew, prior, seed))

    def prior(self, skew: float, name: str, seed: int) -> Tensor:
        """What is said to every probe without a meaningful picture."""
        contexts = ("none", "unk") if name == "both" else (name,)
        return language_prior([self.first(skew, context, seed) for context in contexts])

    def drawn(self, skew: float, prior: str | None, seed: int, samples: Sequence[Sample], most: int) -> list[str]:
        """What is drawn, word by word, after every sample's request: at most so many tokens."""
        model = self.trained(skew, seed)
        torch.manual_seed(seed)
        found: list[str] = []
        for inputs in self.shown(model, samples):
            contexts = [] if prior is None else self.blind(model, inputs, prior, DECODING_STEP, seed)
            debias = [VisualDebias(model, contexts, alpha=ALPHA, beta=BETA)] if contexts else []
            said: Any = model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=most, **self.ending,
                logits_processor=LogitsProcessorList(debias),
            )  # fmt: skip
            found += self.said(said[:, inputs["input_ids"].shape[1] :])
        return found

    def captioned(self, skew: float, prior: str | None, seed: int) -> tuple[dict[str, float], list[float]]:
        """CHAIR of the captions that are drawn, and of each whether it names what is not there."""
        said = self.drawn(skew, prior, seed, self.described, LONGEST)
        scenes = [self.world.scene("heldout", number) for number in range(len(said))]
        found = chair(said, scenes)
        wrong = [float(absent_mentions(*one)[0] > 0) for one in zip(said, scenes, strict=True)]
        return {NAMED: found.named.value} | ({CHAIR_I: found.chair_i.value} if found.chair_i else {}), wrong

    def outcome(self, arm: str, seed: int) -> Outcome:
        """The answers of an arm, judged."""
        skew, how, prior = ARMS[arm]
        truths = np.array([truth(sample) == YES_NO[0] for sample in self.probes])
        metrics, items = dict[str, float](), dict[str, Sequence[float]]()
        if how == "likelier":
            found = self.likelier(skew, prior, seed).numpy()
            yes = found[:, 0] >= found[:, 1]
            metrics[ERROR] = expected_calibration_error(found.max(1), yes == truths).value
            if prior is not None:
                metrics[BLIND] = float(shares(self.prior(skew, prior, seed))[:, 0].mean())
        else:
            yes = np.array([says_yes(text) for text in self.drawn(skew, prior, seed, self.probes, 1)])
            metrics, items[CHAIR_S] = self.captioned(skew, prior, seed)
        return Outcome(
            metrics={**metrics, **_f1(yes, truths)}, items={**items, **self.items(yes, truths)}, steps=0, samples=0
        )

    def items(self, yes: np.ndarray, truths: np.ndarray) -> Mapping[str, Sequence[float]]:
        """Whether each probe was answered rightly, and with yes: of all, and by strategy."""
        right = (yes == truths).astype(float)
        kinds = np.array([sample.meta["type"] for sample in self.probes])
        each = {f"{METRIC}, {kind}": right[kinds == kind].tolist() for kind in STRATEGIES}
        return {METRIC: right.tolist(), YES: yes.astype(float).tolist(), **each}

    def study(self) -> Study:
        """All arms and claims."""
        arms = []
        for name, (skew, how, prior) in ARMS.items():
            config = {"yes learned": skew, "answer": how, "prior": prior}
            if how == "drawn":
                config["caption tokens"] = LONGEST
            arms.append(Arm(name=name, run=partial(self.outcome, name), config=config))
        return Study(
            slug=SLUG, title="what a model says without looking, taken off its answers (scenes)", arms=arms,
            claims=CLAIMS, config=self.shared, notes=NOTES,
            tuning="no arm was tuned: alpha, beta and margins were set before the first run",
        )  # fmt: skip


def _f1(yes: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    score = yes_no(yes.tolist(), truths.tolist()).f1
    assert score is not None
    return {F1: score.value}


def headline(work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn scenes."""
    return Bench(budget, work or WORK / SLUG).study()
