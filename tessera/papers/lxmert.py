"""LXMERT: Learning Cross-Modality Encoder Representations from Transformers (1908.07490).

A sentence goes through language layers, the regions that a detector found in a picture through object-relationship
layers, both through cross-modality layers. Everything is learned from scratch, by five tasks on pairs of a sentence and
a picture, in three stages:
    1. hidden words, features and labels of hidden regions, and whether the two belong together;
    2. the same, and answering the sentence where it is a question, at twice the weight;
    3. fine-tuning: questions alone, all answers of the table at once; or statements about two pictures.
At mini size the regions are those that a world knows, or what stands out in a picture, seen by mini/clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from tessera.answerer import Answerer
from tessera.data.sequence import IGNORED
from tessera.errors import UserError
from tessera.files import atomic_folder
from tessera.models.fusion import (
    FusionConfig,
    FusionForPairs,
    FusionForPreTraining,
    FusionForQuestionAnswering,
    Targets,
    encoders_from,
)
from tessera.models.fusion.configuration import REGIONS
from tessera.models.fusion.pretraining import REGION_TASKS
from tessera.models.fusion.sizes import component_sizes
from tessera.objectives.answers import soft_answers
from tessera.objectives.next_token import next_token
from tessera.papers.figures import Figure
from tessera.papers.lxmert_data import Batch, Chances, Streams, predict
from tessera.papers.lxmert_material import Material, open_material, start_from
from tessera.papers.lxmert_study import headline, nlvr, tasks
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import CONFIG, change
from tessera.study.counting import macs
from tessera.study.design import Study
from tessera.train.engine import Stage
from tessera.train.optim import Optimiser
from tessera.zoo.parts import quiet


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how a stage trains.

    `batch` counts the samples of one update, of all processes together; they are read in `accumulate` parts one after
    the other, which saves memory and changes nothing else.
    """

    steps: int
    batch: int
    accumulate: int = 1
    lr: float
    kind: Literal["adamw", "muon", "bertadam"] = "bertadam"
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0

    @property
    def part(self) -> int:
        """Samples that are read at once, by all processes together."""
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise UserError(f"a batch of {self.batch} does not divide into {self.accumulate} parts; change one of them")
        return self.batch // self.accumulate

    def optimiser(self) -> Optimiser:
        """As the paper's, or another kind with its rate."""
        return Optimiser(
            kind=self.kind, lr=self.lr, muon_lr=20 * self.lr, weight_decay=self.weight_decay,
            betas=(0.9, 0.999 if self.kind == "bertadam" else 0.98), warmup=self.warmup, clip=self.clip,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that mini and published LXMERT differ in.

    Args:
        model: fields of FusionConfig beside what the data decide.
        chances: of what is hidden and exchanged in pre-training.
        answers: the most that a table holds which is counted from the questions.
        answer_weight: of question answering in the second stage; more than half of the pairs are no questions.
        task: what fine-tuning learns: "questions" (VQA, GQA) or "statements" about two pictures (NLVR2).
    """

    model: Mapping[str, Any] = field(metadata={CONFIG: FusionConfig})
    chances: Chances = Chances()
    answers: int = 9500
    answer_weight: float = 2.0
    task: Literal["questions", "statements"] = "questions"
    pretrain: Schedule
    answering: Schedule
    finetune: Schedule

    @property
    def steps(self) -> int:
        """Updates of all three stages."""
        return self.pretrain.steps + self.answering.steps + self.finetune.steps

    def scaled(self, steps: int | None) -> Recipe:
        """The same recipe with `steps` updates in all, shared among the stages in the same proportion."""
        share = 1.0 if steps is None else steps / self.steps

        def shorter(stage: Schedule) -> Schedule:
            return replace(stage, steps=max(1, round(stage.steps * share)))

        stages = shorter(self.pretrain), shorter(self.answering), shorter(self.finetune)
        return replace(self, pretrain=stages[0], answering=stages[1], finetune=stages[2])


SMALL = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 40,
    "max_words": 40,
}
RECIPES = {
    "mini": Recipe(
        model={
            **SMALL, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512, "l_layers": 3,
            "r_layers": 2, "x_layers": 2,
            # As the paper describes it. Naming a region that is shown teaches nothing here: its features say it all.
            "label_losses": "masked",
        },
        pretrain=Schedule(steps=800, batch=64, lr=1e-3, kind="muon"),
        answering=Schedule(steps=800, batch=64, lr=1e-3, kind="muon"),
        finetune=Schedule(steps=1600, batch=64, lr=1e-3, kind="muon"),
    ),
    # 20 epochs of 9.18 million pairs, half of them without questions answered. Whether the second half goes on with the
    # rate of the first is open; here each has its own climb and fall.
    "published": Recipe(
        model={},
        pretrain=Schedule(steps=358_600, batch=256, lr=1e-4),
        answering=Schedule(steps=358_600, batch=256, lr=1e-4),
        finetune=Schedule(steps=79_000, batch=32, lr=5e-5, warmup=0.1, clip=5.0),  # 4 epochs of VQA
    ),
}  # fmt: skip


@dataclass
class Run:
    """One training of LXMERT.

    Args:
        start: a model that is already pre-trained; None for the first two stages.
        weights: of pre-training tasks, where they are not the model's own; 0 turns one off.
    """

    recipe: Recipe
    material: Material
    streams: Streams
    start: FusionForQuestionAnswering | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    model: FusionForQuestionAnswering | FusionForPairs | None = None

    @property
    def config(self) -> FusionConfig:
        """The model that fits the data."""
        return FusionConfig(**{**self.recipe.model, **self.material.decided(self.streams)})

    def stages(self) -> Iterator[Stage]:
        """Each is made when the one before it has ended."""
        before: Any = self.start
        if before is None:
            before = FusionForPreTraining(self.config)
            yield self.pretraining(before, "pretrain", self.recipe.pretrain, answers=0.0)
            yield self.pretraining(before, "answering", self.recipe.answering, answers=self.recipe.answer_weight)
        self.model = self.tuned(before)
        yield self.finetuning(self.model)

    def pretraining(self, model: FusionForPreTraining, name: str, schedule: Schedule, answers: float) -> Stage:
        """Stage 1 or 2: all tasks on sentences and regions with something hidden, `answers` the weight of one."""

        def objective(model: Any, batch: Batch) -> dict[str, Any]:
            features, regions = batch.features(self.material.encoder), batch.regions
            states = model.lxmert(
                batch.input_ids, batch.shown(features), regions.boxes, attention_mask=batch.attention_mask,
                visual_attention_mask=regions.mask,
            )  # fmt: skip
            targets = Targets(
                words=batch.words, features=features, masked=batch.masked, objects=regions.objects,
                object_confidence=regions.object_confidence, attributes=regions.attributes,
                attribute_confidence=regions.attribute_confidence, matched=batch.matched, answers=batch.answers,
            )  # fmt: skip
            tallies = model.tallies(states, targets, regions.mask)
            return {task: (tally.total, tally.number, model.weights[task]) for task, tally in tallies.items()}

        loader = self.streams.pretraining(self.material.sources("pairs", "questions"), schedule.part)
        return Stage(
            name=name, model=model, objective=objective, loader=loader, steps=schedule.steps,
            accumulate=schedule.accumulate, weights={"answers": answers, **self.weights}, counts=asked,
            optimiser=schedule.optimiser(),
        )  # fmt: skip

    def tuned(self, before: FusionForPreTraining | FusionForQuestionAnswering) -> Any:
        """The model of stage 3, which begins as the pre-trained one; its answers as far as both tables have them."""
        if self.recipe.task == "statements":
            pairs = FusionForPairs(before.config)
            encoders_from(pairs, before)
            return pairs
        names = dict(enumerate(self.streams.table.answers))
        config = FusionConfig(**{**before.config.to_dict(), "num_qa_labels": len(names), "id2label": names})
        model = FusionForQuestionAnswering(config)
        encoders_from(model, before)
        if before.answer_head is not None:
            model.answer_head.take_over(before.answer_head, self.material.places(self.streams.table, before.config))
        return model

    def finetuning(self, model: FusionForQuestionAnswering | FusionForPairs) -> Stage:
        """Stage 3: the score of every answer to a question, or whether a statement is true of two pictures."""
        schedule = self.recipe.finetune

        def objective(model: Any, batch: Batch) -> dict[str, Any]:
            logits = predict(model, batch, batch.features(self.material.encoder))
            if batch.truths is not None:
                tally = next_token(logits, batch.truths)
            else:
                assert batch.scores is not None
                tally = soft_answers(logits, batch.scores)
            return {"answers": (tally.total, tally.number)}

        read = self.streams.statements if self.recipe.task == "statements" else self.streams.questions
        return Stage(
            name="finetune", model=model, objective=objective, steps=schedule.steps, accumulate=schedule.accumulate,
            loader=read(self.material.sources(self.recipe.task), schedule.part), optimiser=schedule.optimiser(),
            counts=lambda batch: {"answers": len(batch.sample_ids)},
        )  # fmt: skip

    def answerer(self) -> Answerer:
        """The fine-tuned model in use."""
        assert isinstance(self.model, FusionForQuestionAnswering)
        return Answerer(self.model.eval(), self.streams.sentences, self.material.encoder)


def asked(batch: Batch) -> dict[str, int]:
    """How much each task of pre-training asks for."""
    assert batch.words is not None and batch.answers is not None
    words, answers = (int((one != IGNORED).sum()) for one in (batch.words, batch.answers))
    regions = dict.fromkeys(REGION_TASKS, int(batch.regions.mask.sum()))
    return {"words": words, "matched": len(batch.images), "answers": answers, **regions}


@paper("lxmert")
class LXMERT(Paper):
    """Three encoders, for words, for regions and for both together, are pre-trained by five tasks."""

    variants = ("unshared",)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        published = RECIPES["published"]
        each = ("pretrain", published.pretrain), ("answering", published.answering), ("finetune", published.finetune)
        return {
            "parts": [
                "language encoder, 9 layers", "object-relationship encoder, 5 layers",
                "cross-modality encoder, 5 layers, one weight set for both directions of its attention",
                "36 regions of a detector (files), or those a world knows, seen by mini/clip",
            ],
            "stages": [f"{name}: {one.steps:,} steps of {one.batch}, {one.kind}, rate {one.lr}" for name, one in each],
            "claims": [
                "VQA test-dev 72.42, GQA 60.00, NLVR2 test-P 74.45, the best before it 54 (official repository)",
                "all five pre-training tasks help the answers to questions",
            ],
        }  # fmt: skip

    def figures(self) -> Sequence[Figure]:
        """The released checkpoint, and what the model reads."""
        return (
            Figure("released checkpoint in MiB", "870", at="checkpoint MiB"),
            Figure("words of a sentence", "20", at="tokens / words"),
            Figure("regions of a picture", "36", at="tokens / regions"),
        )

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters by part and multiply-adds of one pair; "unshared" has a weight set for each direction."""
        if variant not in (None, *self.variants):
            raise UserError(f"lxmert has no variant {variant!r}; known is 'unshared'")
        config = FusionConfig(shared_cross_attention=variant is None)
        parameters, words = component_sizes(config), config.max_words
        with torch.device("meta"):
            pair = {
                "input_ids": torch.zeros(1, words, dtype=torch.long),
                "visual_feats": torch.zeros(1, REGIONS, config.visual_feat_dim),
                "visual_pos": torch.zeros(1, REGIONS, config.visual_pos_dim),
            }
            counted = macs(FusionForPreTraining(config), pair)
        return {
            "parameters": parameters, "checkpoint MiB": parameters["total"] * 4 / 2**20, "gmacs": counted / 1e9,
            "tokens": {"words": words, "regions": REGIONS},
        }  # fmt: skip

    def train(self, options: TrainOptions) -> Path:
        """Run the three stages and write the model to `options.out`/model; with `--parts model=FOLDER`, which is
        pre-trained already, the last one alone."""
        recipe = change(RECIPES[options.size].scaled(options.steps), options.settings)
        material = open_material(options, recipe.task)
        start = start_from(options, material, recipe.model)
        sentences = material.sentences((recipe.model if start is None else start.config.to_dict()).get("max_words", 20))
        trainer = self.trainer(options, recipe)
        streams = Streams(
            sentences, material.table(recipe.answers), material.detector, recipe.chances, options.seed, trainer.rank,
            trainer.world, options.reading_threads,
        )  # fmt: skip
        run = Run(recipe, material.to(trainer.accelerator.device), streams, start)
        trainer.run(run.stages(), recipe.steps if start is None else recipe.finetune.steps)
        folder = options.out / "model"
        if trainer.main:
            assert run.model is not None
            if recipe.task == "statements":
                with atomic_folder(folder) as aside, quiet():
                    run.model.save_pretrained(aside)
                    material.tokenizer.save_pretrained(aside)
            else:
                run.answerer().save(folder)
            trainer.reporter.note(material.judged(run.model, streams, recipe.task))
        return folder

    def study(self) -> Study:
        """The study of the paper's claim: the pre-training tasks on and off."""
        return headline(Run, RECIPES["mini"])

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """One task left out at a time, and sentences that people wrote."""
        return {"tasks": partial(tasks, Run, RECIPES["mini"]), "nlvr": partial(nlvr, Run, RECIPES["mini"])}
