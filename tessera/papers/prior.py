"""Prioritizing Image-Related Tokens Enhances Vision-Language Pre-Training (PRIOR, 2505.08971).

First a copy of the language model reads the captions without their pictures. What it can foretell needs no picture, so
in the pre-training proper each word of a caption counts by one minus the probability that this blind reference gave it,
normalised so that the factors of a caption sum to its length. The weights are `tessera.objectives.importance`, the
reference `tessera.train.blind`; the model is any of `tessera.models.lvlm`, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tessera.data.blind import BlindBuilder, ScoredPacker, Scores
from tessera.data.loader import Loader
from tessera.data.packing import Packer
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import UserError, nearest
from tessera.models.adapters import add_lora
from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration
from tessera.objectives.importance import Importance
from tessera.papers.figures import Figure
from tessera.papers.lvlm_training import MINI_LORA, RATES, TRAINING, Learning, Lesson, Parts, open_captions
from tessera.papers.prior_study import headline
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import change
from tessera.study.counting import count
from tessera.study.design import Study
from tessera.train.blind import HALVES, Captions, Reference, reference_stages, score
from tessera.train.engine import Stage, Trainer
from tessera.train.lvlm import Prioritised, count_words
from tessera.train.optim import Optimiser

PICTURES = 6000  # of drawn scenes, where --data names nothing
SCORES = "scores.safetensors"
# The official figure: of each word it shows, the loss before, the blind probability, and the loss after. The words that
# it leaves out enter by the mean of the weights, which the words that it shows agree on.
WORKED: dict[str, tuple[float, tuple[tuple[float, float, str], ...]]] = {
    "caption 1": (0.667, (
        (0.68, 0.01, "1.01"), (0.47, 0.11, "0.63"), (0.71, 0.47, "0.56"), (0.47, 0.05, "0.66"), (0.65, 0.48, "0.51")
    )),
    "caption 2": (0.312, ((0.72, 0.03, "2.24"), (0.13, 0.88, "0.05"), (0.32, 0.77, "0.24"))),
}  # fmt: skip
HLVLM, EXAMPLE = "llava-1.5-7b", "worked-example"


@dataclass(frozen=True, kw_only=True)
class Recipe(Learning, Lesson):
    """Two references, then the pre-training of the connector and of what else learns."""

    importance: Importance = Importance()
    reference: Reference

    def scaled(self, steps: int | None) -> Recipe:
        """`steps` updates in all, shared among the three stages in the same proportion, one at least for each."""
        if steps is None:
            return self
        each = max(1, round(steps * self.reference.steps / self.total))
        rest = max(1, steps - len(HALVES) * each)
        return replace(self, steps=rest, reference=replace(self.reference, steps=each))

    @property
    def total(self) -> int:
        """Updates of all stages."""
        return self.steps + len(HALVES) * self.reference.steps


RECIPES = {
    "mini": Recipe(
        # Muon's rate is that of whole matrices: adapters would foresee words worse by it.
        reference=Reference(steps=60, rows=8, rank=32, lora_alpha=64, optimiser=Optimiser(lr=1e-3)),
        steps=400, rows=8, row_length=512, layers=[1, -1], optimiser=Optimiser(kind="muon", lr=1e-3), lora=MINI_LORA,
    ),
    # The steps of the published curve and the size of the adapters are known, from the figure and from DPA; nothing
    # else is: rows hold about LLaVA's 256 pictures, and the rate is that of its second stage.
    "published": Recipe(
        reference=Reference(steps=1000, rows=16, rank=256, lora_alpha=512, optimiser=Optimiser(lr=2e-4, warmup=0.03)),
        steps=5000, rows=64, row_length=2048, accumulate=8,
        optimiser=Optimiser(lr=2e-5, weight_decay=0.0, warmup=0.03, factors=RATES),
    ),
}  # fmt: skip


@paper("prior")
class Prior(Paper):
    """Words of a caption that can be guessed without the picture count less in the loss."""

    variants = (HLVLM, EXAMPLE)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        return {
            "parts": [
                "weights: (1 - P) ** alpha over their mean within the caption, P by a model that sees no picture; no"
                " gradient goes through them (--set importance.alpha=0.5 importance.clip=10)",
                "the same tokens before a word as the model with eyes has, its pictures' places left out",
                "P of every learned word is kept in half precision under a hash of the caption's tokens; a caption"
                " whose hash is unknown ends the training",
                "any encoder, connector and language model, packed rows; a caption is what is learned of one sample",
            ],
            "stages": [
                *(
                    f"{size}: twice {one.reference.steps:,} steps of a reference (adapters of rank"
                    f" {one.reference.rank}), then {one.steps:,} steps of {one.rows} rows, connector and language model"
                    for size, one in RECIPES.items()
                ),
                "captions fall into two halves by their hash; each is scored by the reference that read the other",
                "a conversation without a picture has nothing to gain from one: such are counted and left out",
            ],
            "options": [*TRAINING],
            "claims": [
                "19 % better than next-token prediction with an image encoder, 8 % without, relative mean of several"
                " benchmarks; larger scaling coefficients (abstract)",
                "above it at all ten checkpoints of the figure's curve",
            ],
            "of this library's making": [
                "floor 0.001 under 1 - P, two halves, adapters for the reference, the mean over all words of a batch:"
                " the paper's own settings were not at hand, and no code was published",
                "multi-turn dialogues count as one caption",
            ],
            "not built": [
                "the model without an image encoder (raw patches); the loss and the data would be the same",
                "scoring each caption just before its own step, as one epoch at web scale would allow",
            ],
        }

    def figures(self) -> Sequence[Figure]:
        """No parameters are added; the entries of the official figure."""
        found = [Figure("parameters that it adds", "0", at="parameters / added", variant=HLVLM)]
        for caption, (_, words) in WORKED.items():
            for place, (_, _, after) in enumerate(words, start=1):
                # Each entry follows from three that are rounded to two digits themselves.
                found.append(
                    Figure(
                        f"{caption}, word {place}: its loss", after, at=f"{caption} / word {place}", variant=EXAMPLE,
                        within=0.02,
                    )
                )  # fmt: skip
        return found

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters of LLaVA-1.5-7B as PRIOR trains it and of its reference; losses of the official figure's words."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"prior has no variant {variant!r}{nearest(variant, self.variants)}")
        return _llava() if variant == HLVLM else worked()

    def train(self, options: TrainOptions) -> Path:
        """Score the captions blind, then pre-train with them weighed; the model goes to `options.out`/model."""
        recipe = change(RECIPES[options.size].scaled(options.steps), options.settings)
        parts = Parts.of(options.size, options.parts)
        _ = recipe.at_once  # what cannot be is refused before anything is trained
        recipe.check(parts.sketch(**recipe.fields()))
        drawn: Any = ScenesWorld(train_pictures=PICTURES)
        sources = open_captions(options.data, drawn)
        captions = Captions(sources, BlindBuilder(parts.builder(1, recipe.row_length)))
        trainer = self.trainer(options, recipe)
        made: list[LVLMForConditionalGeneration] = []

        def stages() -> Iterator[Stage]:
            references: list[PreTrainedModel] = []
            yield from reference_stages(
                captions, parts.language_model, recipe.reference, recipe.row_length, references, seed=options.seed,
                rank=trainer.rank, world_size=trainer.world,
            )  # fmt: skip
            scores = _scores(captions, references, recipe, options.out / SCORES, trainer)
            references.clear()
            made.append(parts.learner(recipe))
            yield _pretraining(made[0], parts, captions, scores, recipe, options, trainer)

        trainer.run(stages(), recipe.total)
        if trainer.main:
            parts.save(made[0].eval(), options.out / "model", recipe.tiles)
        return options.out / "model"

    def study(self) -> Study:
        """The study of weighted, unweighted and wrongly weighted words."""
        return headline()


def _scores(
    captions: Captions, references: Sequence[PreTrainedModel], recipe: Recipe, file: Path, trainer: Trainer
) -> Scores:
    """Those in `file`, or new ones, which are kept there: all are there before the language model changes."""
    if trainer.main and not file.is_file():
        scores = score(captions, references, recipe.reference.rows, recipe.row_length)
        scores.save(file)
        trainer.reporter.note(_summary(scores, recipe.importance))
    trainer.accelerator.wait_for_everyone()
    return Scores.load(file)


def _summary(scores: Scores, importance: Importance) -> str:
    blind = torch.from_numpy(scores.values).float()
    lengths = torch.tensor([len(scores.rows[name]) for name in sorted(scores.rows)])
    factors = importance(blind, torch.arange(len(lengths)).repeat_interleave(lengths))
    return (
        f"{len(lengths):,} captions of {len(blind):,} words are scored: mean blind probability {blind.mean():.3f},"
        f" largest factor of a word {factors.max():.1f}; kept in {SCORES}"
    )


def _pretraining(
    model: LVLMForConditionalGeneration, parts: Parts, captions: Captions, scores: Scores, recipe: Recipe,
    options: TrainOptions, trainer: Trainer,
) -> Stage:  # fmt: skip
    builder = parts.builder(recipe.places(model), recipe.row_length)
    packer = Packer(builder, recipe.at_once, recipe.row_length, pad_id=parts.pad_id)
    loader = Loader(
        captions.mixture, ScoredPacker(packer, scores), seed=options.seed, rank=trainer.rank, world_size=trainer.world,
        workers=options.reading_threads,
    )  # fmt: skip
    return Stage(
        name="pretrain", model=model, objective=Prioritised(model, recipe.pixels(model), recipe.importance),
        loader=loader, steps=recipe.steps, accumulate=recipe.accumulate, optimiser=recipe.optimiser, counts=count_words,
        trainable=recipe.trainable,
    )  # fmt: skip


def worked() -> dict[str, Any]:
    """The losses of the official figure's words, by `Importance` over each caption's shown words and as many unseen
    ones that bring the mean of the weights to the caption's own."""
    found: dict[str, Any] = {}
    for caption, (mean, words) in WORKED.items():
        before = torch.tensor([loss for loss, _, _ in words])
        blind = torch.tensor([chance for _, chance, _ in words])
        rest = 2 * mean - (1 - blind).mean()  # weight of each unseen word
        factors = Importance()(torch.cat([blind, (1 - rest).expand(len(words))]), torch.zeros(2 * len(words)).long())
        after = factors[: len(words)] * before
        found[caption] = {f"word {place}": float(loss) for place, loss in enumerate(after, start=1)}
    return found


def _llava() -> dict[str, Any]:
    config = LVLMConfig()
    with torch.device("meta"):
        total = count(LVLMForConditionalGeneration(config))["parameters"]
        reference: Any = AutoModelForCausalLM.from_config(config.text_config)
        words = count(reference)["parameters"]
        wanted = RECIPES["published"].reference
        add_lora(reference, rank=wanted.rank, alpha=wanted.lora_alpha)
        learned = sum(weight.numel() for weight in reference.parameters() if weight.requires_grad)
    # The weights are numbers beside the data: the model with PRIOR is the model without.
    return {
        "parameters": {"total": total, "added": 0},
        "reference": {"parameters": words, "trained, in adapters": learned},
        "bytes kept a word": 2,
    }
