"""eP-ALM: Efficient Perceptual Augmentation of Language Models (2303.11403).

Image encoder and language model are frozen. The class token after each of the encoder's last blocks goes through a
linear layer and stands before the states of the decoder's later layers as one token, which each of these layers gets
anew; learned tokens stand before the words. Both are trained on the task itself, in one stage. The model is in
`tessera.models.injected`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from tessera.augmented import LONGEST, Augmented
from tessera.data.beside import Beside
from tessera.data.mixture import Mixture
from tessera.data.sample import Still, Text
from tessera.data.source import Source, Split, World
from tessera.data.worlds import open_world
from tessera.errors import BadSample, UserError, nearest
from tessera.evaluate.intervals import exact_binomial
from tessera.evaluate.vqa import normal
from tessera.models.injected import InjectedLMConfig, InjectedLMForConditionalGeneration
from tessera.models.injected.configuration import OPT
from tessera.papers.ep_alm_material import builder, check, parts_of, tokenizer_of
from tessera.papers.ep_alm_study import MINI, headline
from tessera.papers.figures import Figure
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import CONFIG, change
from tessera.study.counting import count, macs
from tessera.study.design import Study
from tessera.train.injected import injected_stage, words_loader
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.vision.vit import PlainViTConfig

BASE, LARGE = "opt-2.7b-vit-b16", "opt-6.7b-vit-l16-pt"
VIT_L16 = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {"text": OPT["opt-2.7b"], "vision": {}, "model": {}},
    LARGE: {
        "text": OPT["opt-6.7b"], "vision": VIT_L16, "model": {"shared_connector": True, "prompt_mlp": False},
    },
}  # fmt: skip
WORDS = 20  # of the sentence whose cost is counted
ASKED = ("questions", "conversations")
JUDGED = 200  # held-out questions
QUESTIONS = 443_757  # of VQA v2, train


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How connector and prompt are trained.

    Args:
        model: fields of InjectedLMConfig that differ from its defaults.
        task: what is learned: answers, captions, or as much of both as the data hold.
        batch: samples of one update, of all processes together, read in `accumulate` parts.
        questions_learned: whether the loss is on questions too.
        mark: a token of its own that ends questions, added to the tokenizer where it is not there; "" for none.
        keep: what is written in the end: the whole model, or what was trained with the names of the frozen parts.
    """

    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: InjectedLMConfig})
    task: Literal["questions", "captions", "both"] = "questions"
    steps: int
    batch: int
    accumulate: int = 1
    optimiser: Optimiser
    questions_learned: bool = True
    mark: str = "</a>"
    keep: Literal["whole", "trained"] = "trained"

    @property
    def part(self) -> int:
        """Samples that are read at once, by all processes together."""
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise UserError(f"a batch of {self.batch} does not divide into {self.accumulate} parts; change one of them")
        return self.batch // self.accumulate

    def sources(self, worlds: Sequence[World], split: Split = "train") -> list[tuple[Source, float]]:
        """What is learned, each with its share.

        Raises:
            UserError: no world holds it.
        """
        found = []
        for world in worlds:
            asked = [] if self.task == "captions" else [task for task in ASKED if task in world.tasks][:1]
            told = [] if self.task == "questions" else [task for task in ("pairs",) if task in world.tasks]
            found += [(world.source(task, split), 1.0) for task in asked + told]
        if not found:
            have = sorted({task for world in worlds for task in world.tasks})
            raise UserError(f"the data hold no {self.task}, which this training reads; they hold {', '.join(have)}")
        return found


RECIPES = {
    "mini": Recipe(
        model={**MINI, "levels": 3, "start": 1, "end": 4}, task="both", steps=600, batch=24,
        optimiser=Optimiser(kind="muon", lr=1e-2), questions_learned=False, mark="", keep="whole",
    ),
    # configs/image/ePALM_vqa.yaml: 8 epochs, 400 steps of warm-up. Groups and schedule are as they are meant there; in
    # the code the schedule reaches one of two groups.
    "published": Recipe(
        steps=8 * QUESTIONS // 64, batch=64,
        optimiser=Optimiser(
            lr=2e-5, betas=(0.9, 0.999), weight_decay=0.02, warmup=400 / (8 * QUESTIONS / 64), floor=0.05, clip=None,
            factors={"prompt.*": 0.5},
        ),
    ),
}  # fmt: skip


@paper("ep-alm")
class EPALM(Paper):
    """A frozen language model sees through one token before its later layers; one linear layer is trained."""

    variants = tuple(VARIANTS)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        stages = [
            f"{size}: {one.steps:,} steps of {one.batch}, {one.optimiser.kind}, rate {one.optimiser.lr:g}"
            for size, one in RECIPES.items()
        ]
        return {
            "parts": [
                "any encoder with a class token and any causal language model that is told positions, both frozen"
                " (--parts vision=FOLDER language=FOLDER)",
                "class tokens after the encoder's last 6 blocks, each through the encoder's final norm and a linear"
                " layer: one each, or one for all (shared_connector)",
                "one token before decoder layers 19 to 30 of 32, given anew to each; each of the 6 serves two layers",
                "10 learned tokens before the words, without positions; through an MLP or as they are (prompt_mlp)",
                "causal: the token reads itself and the prompt. faithful: it reads all words, as the official code has"
                " it, and hands them back through layer 31: there a word learns of later ones, so no cache is used",
            ],
            "stages": [
                *stages,
                "loss: the sum over a sample's words, mean over samples, times 0.1; on questions too (mini: answers)",
                "published parts are not written again; --set keep=whole does that too",
            ],
            "claims": [
                "OPT-6.7B, ViT-L/16, one linear layer, 3 beams: VQA v2 test 54.89, GQA 42.91, COCO CIDEr 111.63,"
                " MSVD-QA 38.40, MSRVTT-QA 35.90, AudioCaps CIDEr 61.86; under 1 % of the parameters trained",
                "better than an input prompt (PromptFuse), a projection of all tokens and adapters, all with frozen"
                " unimodal parts; the figures were not at hand",
            ],
            "not built": [
                "video (TimeSformer) and audio (AST) encoders; the official code's adapters, several class tokens in a"
                " place, a token before every k-th layer alone, ranking of a closed list of answers",
                "augmentation of pictures, and the language model's own dropout, which the official training leaves on",
            ],
        }  # fmt: skip

    def figures(self) -> Sequence[Figure]:
        """What follows from the released configurations."""
        trained = "parameters / trained"
        return (
            Figure("base, connector", "11,811,840", at="parameters / connector", variant=BASE),
            Figure("base, prompt", "13,137,920", at="parameters / prompt", variant=BASE),
            Figure("base, trained", "24,949,760", at=trained, variant=BASE),
            Figure("OPT-2.7B", "2,651,596,800", at="parameters / language", variant=BASE),
            Figure("base, trained of the language model, per cent", "0.94", at="trained, per cent", variant=BASE),
            Figure("pt-L, connector", "4,198,400", at="parameters / connector", variant=LARGE),
            Figure("pt-L, prompt", "40,960", at="parameters / prompt", variant=LARGE),
            Figure("pt-L, trained", "4,239,360", at=trained, variant=LARGE),
            Figure("OPT-6.7B", "6,658,473,984", at="parameters / language", variant=LARGE),
            Figure("pt-L, trained of the language model, per cent", "0.06", at="trained, per cent", variant=LARGE),
            Figure("tokens before the words", "10", at="tokens / prompt", variant=BASE),
            Figure("decoder layers with the prompt", "32", at="tokens / layers with the prompt", variant=BASE),
            Figure("decoder layers with the token", "13", at="tokens / layers with the token", variant=BASE),
        )

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters, tokens and the cost of a sentence at published size; both variants, or one."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"ep-alm has no variant {variant!r}{nearest(variant, self.variants)}")
        return _size(**VARIANTS[variant])

    def train(self, options: TrainOptions) -> Path:
        """Train connector and prompt on `options.data`, by default the scenes, and write the model to
        `options.out`/model."""
        recipe = RECIPES[options.size]
        recipe = change(replace(recipe, steps=options.steps or recipe.steps), options.settings)
        parts = parts_of(options)
        worlds = [open_world(name) for name in options.data or ("scenes",)]
        source = Mixture(recipe.sources(worlds))
        tokenizer = tokenizer_of(parts["language"], recipe.mark)
        build = builder(parts, recipe.model)
        model = build()  # what cannot be is refused here, before anything is written
        check(model, tokenizer)
        words = Beside(tokenizer, model.config.ask, model.config.context or LONGEST, recipe.questions_learned)
        trainer = self.trainer(options, recipe)
        places = {"rank": trainer.rank, "world_size": trainer.world, "workers": options.reading_threads}
        made: list[InjectedLMForConditionalGeneration] = []

        def stages() -> Iterator[Stage]:
            made.append(build())  # here the engine has seeded the generators
            loader = words_loader(source, words, recipe.part, seed=options.seed, **places)
            yield injected_stage(
                made[0], loader, recipe.steps, optimiser=recipe.optimiser, accumulate=recipe.accumulate
            )

        trainer.run(stages(), recipe.steps)
        folder = options.out / "model"
        if trainer.main:
            seeing = Augmented(made[0].eval(), tokenizer)
            seeing.save(folder, parts if recipe.keep == "trained" else None)
            if judged := _judged(seeing, recipe, worlds):
                trainer.reporter.note(judged)
        return folder

    def study(self) -> Study:
        """Injection against one input token, one level and a prompt alone."""
        return headline()


def _size(text: Mapping[str, Any], vision: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    config = InjectedLMConfig(
        vision_config=PlainViTConfig(**vision), text_config=AutoConfig.for_model("opt", **text), **model
    )
    with torch.device("meta"):
        whole = InjectedLMForConditionalGeneration(config)
        words = torch.zeros(1, WORDS, dtype=torch.long)
        plain = macs(whole.language_model, {"input_ids": words, "use_cache": False})
        seen = {"input_ids": words, "class_states": torch.empty(1, config.levels, whole.vision.width)}
        ours = macs(whole, seen)
    numbers = {name: int(count(part)["parameters"]) for name, part in whole.trained().items()}
    trained, language = sum(numbers.values()), int(count(whole.language_model)["parameters"])
    layers = config.text_config.num_hidden_layers
    return {
        "parameters": {
            **numbers, "trained": trained, "language": language, "vision": int(count(whole.vision)["parameters"])
        },
        "trained, per cent": 100 * trained / language,
        "tokens": {
            "prompt": config.prompt_length, "layers with the prompt": layers,
            "layers with the token": layers - config.start, "layers that get it anew": config.end - config.start,
        },
        f"gmacs of {WORDS} words": {"language model alone": plain / 1e9, "with prompt and token": ours / 1e9},
    }  # fmt: skip


def _judged(seeing: Augmented, recipe: Recipe, worlds: Sequence[World]) -> str:
    """A sentence: how many held-out questions are answered rightly; "" where there is none."""
    tasks = [] if recipe.task == "captions" else [(world, task) for world in worlds for task in ASKED]
    sources = [world.source(task, "heldout") for world, task in tasks if task in world.tasks]
    pictures: list[Still] = []
    asked, truths = [], []
    for source in sources:
        for index in range(min(len(source), JUDGED // len(sources))):
            with contextlib.suppress(BadSample):
                sample = source[index]
                texts = [segment.text for segment in sample.segments if isinstance(segment, Text)]
                if len(texts) > 1:
                    pictures.append(sample.images[0].pil())
                    asked.append(texts[0])
                    truths.append(texts[1])
    if not pictures:
        return ""
    said = seeing.answer(pictures, asked)
    right = [normal(one) == normal(truth) for one, truth in zip(said, truths, strict=True)]
    share = exact_binomial(sum(right), len(right))
    span = f"95 % interval {share.low:.1%} to {share.high:.1%}"
    return f"held out: {share.value:.1%} of {share.n} questions answered rightly ({span})"
