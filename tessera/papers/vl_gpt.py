"""VL-GPT: A Generative Pre-trained Transformer for Vision and Language Understanding and Generation (2312.09251).

A picture becomes N continuous, causally ordered vectors by a small tokenizer, whose detokenizer regresses the
conditions of a frozen diffusion model. A language model then predicts the next element of interleaved sequences: a
word by cross-entropy, a vector by mean squared error. Three stages:
    A. image tokenizer and detokenizer, against e_v and e_t of the frozen painter (section 3.1);
    B. pre-training on pairs in both orders and on interleaved pages, everything learned (section 3.2);
    C. instruction tuning, the loss on answers only (section 3.3).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tessera.assistant import Assistant
from tessera.data.sequence import CLOSE, OPEN, PLACE
from tessera.data.source import World
from tessera.data.worlds import open_world, world_names
from tessera.data.worlds.emoji_font import find_font
from tessera.errors import UserError
from tessera.models.adapters import has_adapters, merge_adapters
from tessera.models.vlgpt.adapters import add_adapters
from tessera.models.vlgpt.configuration import CausalTokenizerConfig, VLGPTConfig
from tessera.models.vlgpt.image_tokenizer import CausalTokenizerModel
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.objectives.routing import route
from tessera.papers.figures import Figure
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import CONFIG, change
from tessera.papers.vl_gpt_data import Streams
from tessera.papers.vl_gpt_nlvr import nlvr
from tessera.papers.vl_gpt_report import write_report
from tessera.papers.vl_gpt_study import headline
from tessera.papers.vl_gpt_writing import TIMES, states_and_targets, writing_stage, writing_steps
from tessera.study.design import Study
from tessera.tokenizers.aligned import aligned_start
from tessera.train.engine import Callback, Event, Stage, Trainer
from tessera.train.features import FeatureStore
from tessera.train.optim import Optimiser
from tessera.zoo.foundation import Foundation, load_mini, load_published_parts, stack_pixels
from tessera.zoo.lm import Reader
from tessera.zoo.parts import quiet
from tessera.zoo.reading import sketchable, start_reading
from tessera.zoo.sketches import sketches

SUITE = 200  # pictures that the report's first score is taken from; a shortened training is judged on fewer
PATCHES = 2**28  # bytes of patch features that stage A remembers: a demonstration stays within 3 GiB
MEASURED = 512  # pictures that a standardisation of the visual embeddings is measured on


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how a stage trains.

    `batch` counts pictures in stage A and packed rows in B and C: those of one update, of all processes together. It is
    read in `accumulate` parts one after the other, which saves memory and changes nothing else. `factors` on the
    rates go by patterns of parameters' names.
    """

    steps: int
    batch: int
    accumulate: int = 1
    lr: float
    kind: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def part(self) -> int:
        """Pictures or rows that are read at once, by all processes together."""
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise UserError(f"a batch of {self.batch} does not divide into {self.accumulate} parts; change one of them")
        return self.batch // self.accumulate

    def optimiser(self) -> Optimiser:
        """The optimiser with a cosine schedule."""
        return Optimiser(
            kind=self.kind,  # type: ignore[arg-type]
            lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, factors=self.factors,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that mini and published VL-GPT differ in.

    Args:
        tokenizer: fields of CausalTokenizerConfig beside what the parts decide.
        model: fields of VLGPTConfig beside what the parts decide.
        lora: tune the language model by LoRA, as the paper does; or, at mini width, where LoRA saves nothing, whole.
        row_length: positions of a packed row.
        aligned: pictures that the image tokenizer's aligned start is fitted to; 0 starts from random weights.
        told: pictures that the language model's start as a reader of sketches is fitted to; 0 for none.
        drawn: drawings that the regression head looks at once more in the end; 0 for none.
        draw_share: weight of requests to draw in stage C; 1.3 is that of captions.
    """

    tokenizer: Mapping[str, Any] = field(metadata={CONFIG: CausalTokenizerConfig})
    model: Mapping[str, Any] = field(metadata={CONFIG: VLGPTConfig})
    lora: bool
    row_length: int
    aligned: int
    told: int
    drawn: int
    draw_share: float
    align: Schedule
    pretrain: Schedule
    instruct: Schedule

    @property
    def steps(self) -> int:
        """Updates of all three stages."""
        return self.align.steps + self.pretrain.steps + self.instruct.steps

    def scaled(self, steps: int | None) -> Recipe:
        """The same recipe with `steps` updates in all, shared among the stages in the same proportion."""
        if steps is None:
            return self
        share = steps / self.steps

        def shorter(stage: Schedule) -> Schedule:
            return replace(stage, steps=max(1, round(stage.steps * share)))

        align, pretrain = shorter(self.align), shorter(self.pretrain)
        return replace(
            self,
            told=round(self.told * min(share, 1.0)),
            drawn=round(self.drawn * min(share, 1.0)),
            align=align,
            pretrain=pretrain,
            instruct=replace(self.instruct, steps=max(1, steps - align.steps - pretrain.steps)),
        )


# What already knows how to read pictures, to answer and to draw moves little: at the full rate two hundred steps of
# drawing undo half of the answers.
GENTLY = {"language_model.*": 0.03, "visual_projector.*": 0.01}

MINI = Recipe(
    tokenizer={
        # The first states hold outlines and exact places, the last ones what they belong to.
        "vision_layer": [0, -1], "num_embeddings": 16, "width": 256, "depth": 2, "heads": 4, "mlp_width": 768,
        "query_std": 1.0,
    },
    # Words tell but a part of the embeddings: at weight 1 their own error drowns that. And what places outlines is a
    # sixth of the embeddings' spread, so that an error that counts all alike leaves it unlearned.
    model={
        "draw_steps": 12, "draw_guidance": 2.0, "standardise": "conditions", "visual_loss_weight": 6.0,
        "visual_input_dropout": 1.0, "visual_projector": "mlp", "regression_head": "residual",
    },
    lora=False,
    row_length=256,
    aligned=600,
    told=6000,
    drawn=16_000,
    draw_share=0.5,
    align=Schedule(steps=400, batch=48, lr=8e-4, kind="muon"),
    pretrain=Schedule(steps=150, batch=8, lr=1.5e-3, kind="muon", factors=GENTLY),
    instruct=Schedule(steps=680, batch=8, lr=1e-3, kind="muon", factors=GENTLY),
)  # fmt: skip
# What the image tokenizer is told to estimate is what the study compares, so no arm may start from the image condition;
# and fewer embeddings let three seeds of all arms end in half an hour.
STUDIED = replace(
    MINI, aligned=0, told=0, drawn=0, draw_share=1.3,
    tokenizer={**MINI.tokenizer, "num_embeddings": 8, "width": 192, "heads": 3},
    model={"draw_steps": 12, "draw_guidance": 2.0, "visual_loss_weight": 30.0},
    pretrain=Schedule(steps=250, batch=8, lr=1.5e-3, kind="muon"),
    instruct=Schedule(steps=1900, batch=8, lr=1e-3, kind="muon"),
)  # fmt: skip
PUBLISHED = Recipe(  # section 4.1 and appendix A; what they leave open is marked in VLGPTConfig
    tokenizer={},
    model={},
    lora=True,
    row_length=512,
    aligned=0,
    told=0,
    drawn=0,
    draw_share=1.3,
    align=Schedule(steps=10_000, batch=1024, lr=2e-4),
    pretrain=Schedule(steps=20_000, batch=4096, lr=2e-4),
    instruct=Schedule(steps=10_000, batch=512, lr=5e-5),
)


def tokenizer_config(foundation: Foundation, recipe: Recipe) -> CausalTokenizerConfig:
    """The image tokenizer that fits between these parts."""
    painter, text = foundation.painter, foundation.text.encoder.config
    tokens, width = painter.image_projection.latents.shape[1], painter.unet.config.cross_attention_dim
    if recipe.tokenizer.get("image_condition") == "encoder":
        tokens, width = painter.null_patches.shape
    decided = {
        "vision_config": foundation.vision.config.to_dict(),
        "embed_width": foundation.language.config.hidden_size,
        "image_condition_tokens": tokens,
        "image_condition_width": width,
        "text_condition_tokens": text.max_position_embeddings,
        "text_condition_width": text.hidden_size,
    }
    return CausalTokenizerConfig(**beside("tokenizer", recipe.tokenizer, decided))


def beside(name: str, chosen: Mapping[str, Any], decided: Mapping[str, Any]) -> dict[str, Any]:
    """Both together: what a recipe chooses, and what the parts decide and nobody can choose.

    Raises:
        UserError: a choice of what is decided.
    """
    clash = sorted(set(chosen) & set(decided))
    if clash:
        raise UserError(f"{name}.{clash[0]} follows from the parts and cannot be set")
    return {**chosen, **decided}


@dataclass
class Run:
    """One training of VL-GPT: the parts, the data and the three stages over them.

    Args:
        share_patches: remember the features of pictures after stage A too, for other trainings.
        half: what is computed once, between stages, is multiplied in bfloat16.
    """

    foundation: Foundation
    recipe: Recipe
    streams: Streams
    share_patches: bool = False
    half: bool = False
    patches: FeatureStore = field(init=False)
    embeds: FeatureStore = field(init=False)
    model: VLGPTForConditionalGeneration | None = None

    def stages(self) -> Iterator[Stage]:
        """A, B and C, and at mini size one more; each is made when the one before it has ended."""
        tokenizer = CausalTokenizerModel(tokenizer_config(self.foundation, self.recipe), self.foundation.vision)
        stage = self.align(tokenizer)
        if self.recipe.aligned:
            self.start(tokenizer)
        yield stage
        self.model = self.join(tokenizer)
        yield self.language_stage("pretrain", self.recipe.pretrain)
        yield self.language_stage("instruct", self.recipe.instruct)
        if self.recipe.drawn:
            yield self.writing_stage()

    def align(self, tokenizer: CausalTokenizerModel) -> Stage:
        """Stage A: z_v and z_t estimate the painter's conditions (equation 1)."""
        conditions = self.foundation

        def encode(images: Sequence[Any]):
            pixels = stack_pixels(images, conditions.pixels).to(tokenizer.device)
            return tokenizer.patch_features(pixels)

        self.patches = FeatureStore(encode, limit=PATCHES)
        config = tokenizer.config
        weights = {"image condition": config.image_weight, "text condition": config.text_weight}
        same_layers = config.vision_layers == list(conditions.image.layers) and config.keep_class_token
        shared = conditions.image.encoder is conditions.vision and same_layers

        def image_target(images: Sequence[Any], features: Any):
            states = features if shared else conditions.image.states(images)
            return states if config.image_condition == "encoder" else conditions.image.of_states(states)

        def objective(model: CausalTokenizerModel, batch: Any):
            images, sentences = batch["images"], batch["sentences"]
            features = self.patches(images).to(model.device)
            output = model(
                patch_features=features,
                image_target=lambda: image_target(images, features),
                text_target=lambda: conditions.text(sentences),
            )
            named = {"image condition": output.image, "text condition": output.text}
            return {name: (one.total, one.number, weights[name]) for name, one in named.items() if one is not None}

        schedule = self.recipe.align
        return Stage(
            name="align", model=tokenizer, objective=objective,  # type: ignore[arg-type]
            loader=self.streams.captioned(schedule.part), steps=schedule.steps, accumulate=schedule.accumulate,
            counts=lambda batch: {name: len(batch["images"]) for name, weight in weights.items() if weight},
            trainable=("tokenizer.*", "detokenizer.*"), optimiser=schedule.optimiser(),
        )  # fmt: skip

    def start(self, tokenizer: CausalTokenizerModel) -> None:
        """Give the image tokenizer a start that holds every part of the picture at its place."""
        pictures = self.measured(self.recipe.aligned)
        target = self.foundation.image(pictures).float().cpu()
        aligned_start(tokenizer.tokenizer, tokenizer.detokenizer, self.patches(pictures), target)

    def measured(self, number: int) -> Sequence[Any]:
        """Some training pictures, the same on every process."""
        whole = replace(self.streams, rank=0, world_size=1)
        return next(iter(whole.captioned(number)))["images"]

    def join(self, tokenizer: CausalTokenizerModel) -> VLGPTForConditionalGeneration:
        """VL-GPT out of the trained tokenizer and the language model."""
        words = self.foundation.tokenizer
        vocabulary = words.get_vocab()
        start, end, place = (vocabulary[token] for token in (OPEN, CLOSE, PLACE))
        inside = max(start, end) < self.foundation.language.config.vocab_size
        # Rows of a matrix that LoRA leaves frozen could not learn.
        rows = "shared" if inside and not self.recipe.lora else "separate"
        ids = {"image_start_id": start, "image_end_id": end, "image_placeholder_id": place}
        fields = beside("model", self.recipe.model, {**ids, "image_token_rows": rows})
        model = VLGPTForConditionalGeneration.from_parts(self.foundation.language, tokenizer, **fields)
        if model.standardise is not None or model.visual_mask is not None:
            raw = tokenizer.encode(self.patches(self.measured(MEASURED)).to(model.device))
            if model.standardise is not None:
                model.fit_standardisation(raw)
            if model.visual_mask is not None:
                model.start_mask(raw)

        def encode(images: Sequence[Any]):
            # The embeddings are remembered instead, which are a tenth as large.
            patches = self.patches(images) if self.share_patches else self.patches.last(images)
            return model.scale_embeds(tokenizer.encode(patches.to(model.device)))

        self.embeds = FeatureStore(encode)
        if self.recipe.told:
            self.start_language(model)
        return model

    def start_language(self, model: VLGPTForConditionalGeneration) -> None:
        """Let the language model begin with pictures where it was left with sketches of them."""
        scenes, device = sketchable(self.measured(self.recipe.told), self.recipe.told), model.device
        reader = Reader.of(self.foundation.tokenizer)
        start_reading(model.cpu(), self.embeds(scenes), sketches(scenes), reader.words, reader.place)
        model.to(device)  # type: ignore[arg-type]

    def writing_stage(self) -> Stage:
        """The regression head looks at many drawings once the states before them stand still."""
        assert self.model is not None
        whole = replace(self.streams, rank=0, world_size=1)
        rows = 8 * self.recipe.instruct.part  # without gradients there is room for more
        drawings = whole.drawings(self.recipe.drawn, rows, self.recipe.row_length)
        states, targets = states_and_targets(self.model, drawings, self.embeds, self.half)
        return writing_stage(self.model.regression_head, states, targets, self.streams.seed)

    def language_stage(self, name: str, schedule: Schedule) -> Stage:
        """Stage B or C: the next element, word or visual embedding (equation 2)."""
        assert self.model is not None
        rows, streams = (schedule.part, self.recipe.row_length), self.streams
        pretraining = name == "pretrain"
        loader = streams.pretraining(*rows) if pretraining else streams.instructions(*rows, self.recipe.draw_share)

        def objective(model: Any, batch: Any):
            embeds = self.embeds(batch.images).to(batch.input_ids.device) if batch.images else None
            output = model(
                batch.input_ids, labels=batch.labels, visual_target=batch.visual_target,
                position_ids=batch.position_ids, segment_ids=batch.segment_ids, image_embeds=embeds,
                num_text=1, num_visual=1,
            )  # fmt: skip
            weight = self.model.config.visual_loss_weight  # type: ignore[union-attr]
            words, pictures = output.text, output.visual
            return {"words": (words.total, words.number), "pictures": (pictures.total, pictures.number, weight)}

        if self.recipe.lora and not has_adapters(self.model):
            add_adapters(self.model)
        trained = ["*lora_*" if self.recipe.lora else "language_model.*", "regression_head.*"]
        optional = ("image_token_rows", "visual_mask", "visual_projector")
        trained += [f"{name}.*" for name in optional if getattr(self.model, name) is not None]

        def counts(batch: Any) -> dict[str, int]:
            routes = route(batch.labels, batch.visual_target, batch.segment_ids)
            return {"words": int(routes.text.sum()), "pictures": int(routes.visual.sum())}

        return Stage(
            name=name, model=self.model, objective=objective,
            loader=loader, steps=schedule.steps, trainable=trained,
            accumulate=schedule.accumulate, counts=counts, optimiser=schedule.optimiser(),
        )  # fmt: skip

    def assistant(self) -> Assistant:
        """The model as it is now, with what it needs to read and to paint."""
        assert self.model is not None
        return Assistant(self.model, self.foundation.tokenizer, self.foundation.pixels, self.foundation.painter)


def worlds(data: Sequence[str]) -> list[tuple[World, float]]:
    """Worlds with their shares. One's own data, alone, get half; the embedded worlds keep the rest, so that the model
    goes on answering and drawing what its own data do not ask for."""
    embedded = _embedded()
    own = [name for name in data if name not in world_names()]
    if not data:
        return [(open_world(name), share) for name, share in embedded]
    if len(own) < len(data):
        return [(open_world(name), 1.0 / len(data)) for name in data]
    return [(open_world(name), 0.5 / len(own)) for name in own] + [
        (open_world(name), 0.5 * share) for name, share in embedded
    ]


def _embedded() -> list[tuple[str, float]]:
    """The embedded worlds with their shares; the emoji where this machine has a font of them (the report says where it
    has not)."""
    try:
        find_font()
    except UserError:
        if os.environ.get("TESSERA_EMOJI_FONT"):  # named by the user, and not there
            raise
        return [("scenes", 1.0)]
    return [("scenes", 0.85), ("emoji", 0.15)]


@paper("vl-gpt")
class VLGPT(Paper):
    """One causal transformer reads and writes words and pictures by one objective, the next element."""

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        stages = (("A align", MINI.align), ("B pretrain", MINI.pretrain), ("C instruct", MINI.instruct))
        trained = [f"{name}: {one.steps} steps of {one.batch}, {one.kind}, rate {one.lr}" for name, one in stages]
        return {
            "parts": ["language model (LLaMA)", "vision encoder (CLIP)", "painter (latent diffusion, IP-Adapter)"],
            "stages": [*trained, f"mini, write: {MINI.drawn:,} drawings, each {TIMES} times"],
            "claims": [
                "regressing both conditions beats either alone (CLIP similarity 80.2 against 80.1 and 73.6; CIDEr"
                " 133.7 against 123.6 and 131.1)",
            ],
            "other than in the paper": [
                "mini: a picture at the end of its sequence is learned behind masks, from what was said alone, and"
                " drawn so; it is read when it is whole (visual_input_dropout, 0 at published size)",
                "mini: the language model reads embeddings through two layers, which begin where mini/lm reads"
                " sketches, and predicts them through seven, which look at drawings alone when stage C is done:"
                " pictures of what is asked for, before a plain background where none is named (visual_projector,"
                " regression_head, told, drawn; none, linear and 0 at published size)",
                "mini: distances between embeddings count by what the painter's tokens are read from (standardise)",
            ],
        }

    def figures(self) -> Sequence[Figure]:
        """Section 4.1 and the names of the parts."""
        return (
            Figure("VL-GPT with its image tokenizer", "7.5 B", at="parameters / total"),
            Figure("language model", "7 B", at="parameters / language_model"),
        )

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters of each part at published size, counted on the meta device."""
        from tessera.models.diffusion.published import component_sizes as painter_sizes
        from tessera.models.vlgpt.sizes import component_sizes

        return {"parameters": component_sizes(VLGPTConfig()), "painter (not in the total)": painter_sizes()}

    def train(self, options: TrainOptions) -> Path:
        """Run the three stages and write the model to `options.out`/model."""
        published = options.size == "published"
        recipe = change((PUBLISHED if published else MINI).scaled(options.steps), options.settings)
        read = worlds(options.data)
        with quiet():
            foundation = load_published_parts(options.parts) if published else load_mini(options.parts)
        trainer = Trainer(
            options.out,
            config={"paper": "vl-gpt", "size": options.size, "recipe": asdict(recipe)},
            seed=options.seed, resume=options.resume,
            allow_other_data=options.allow_other_data, precision=options.precision,
            callbacks=[Callback(every=max(50, recipe.steps // 12), function=lambda event: show(run, event))],
        )  # fmt: skip
        streams = Streams(
            read, foundation.tokenizer, recipe.tokenizer.get("num_embeddings", 32),
            seed=options.seed, rank=trainer.rank, world_size=trainer.world, workers=options.reading_threads,
        )  # fmt: skip
        run = Run(foundation.to(trainer.accelerator.device), recipe, streams, half=trainer.precision == "bf16")
        trainer.run(run.stages(), total_steps=recipe.steps + writing_steps(recipe.drawn))
        folder = options.out / "model"
        if trainer.main:
            assistant = run.assistant()
            merge_adapters(assistant.model)
            assistant.save(folder)
            if not published:
                assistant.model.to(trainer.accelerator.device)  # where FSDP2, which trains a copy, never put it
                steps = "" if options.steps is None else f" --steps {options.steps}"
                command = f"tessera train vl-gpt --out {options.out} --seed {options.seed}{steps}"
                pictures = min(SUITE, max(4, SUITE * recipe.steps // MINI.steps))
                write_report(assistant, options.out, command, [world for world, _ in read], pictures)
        return folder

    def study(self) -> Study:
        """The study of the paper's ablation and of its unification, at mini size."""
        return headline(partial(Run, share_patches=True), STUDIED)

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """Further studies, for `tessera reproduce vl-gpt --study NAME`."""
        return {"nlvr": nlvr}


def show(run: Run, event: Event) -> None:
    """Note a caption and a drawn answer of the model in training."""
    if event.stage.name not in ("pretrain", "instruct"):
        return
    assistant = run.assistant()
    sample = run.streams.heldout_pair(event.step)
    said = assistant.caption([sample.images[0].pil()])[0]
    event.note(f"truth: {sample.text}\n  model: {said}")
