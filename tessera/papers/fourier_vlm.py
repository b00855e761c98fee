"""Fourier-VLM: Compressing Vision Tokens in the Frequency Domain for Large Vision-Language Models (2508.06038).

The grid of an image encoder's tokens is taken for a small picture of many channels: its two-dimensional DCT, the lowest
frequencies of it, and the way back at their size. The smaller grid goes through the connector as the whole one did. The
reducer is `tessera.reduce.grids.DCT`, its place `tessera.models.lvlm.slot`. It is there from the first step, as in both
stages of LLaVA: the connector learns from captions, then connector and language model from dialogues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel

from tessera.data.loader import Loader
from tessera.data.mixture import Mixture
from tessera.data.packing import Batch, Packer
from tessera.data.sequence import IGNORED
from tessera.data.source import Source, World
from tessera.data.worlds import open_world
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import UserError, nearest
from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration
from tessera.models.lvlm.slot import Slot
from tessera.papers.figures import Figure
from tessera.papers.fourier_vlm_study import headline
from tessera.papers.lvlm_training import MINI_LORA, RATES, TRAINING, Learning, Lesson, Parts, open_captions
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import change
from tessera.reduce.maps import Map
from tessera.reduce.registry import create
from tessera.study.counting import count, macs, prefill
from tessera.study.design import Study
from tessera.train.engine import Stage
from tessera.train.lvlm import NextWord
from tessera.train.optim import Optimiser

ALL, SIDE = 576, 24  # tokens of CLIP ViT-L/14 at 336 pixels
SIDES = {side**2: side for side in (16, 12, 8, 6, 5, 4, 3, 2)}  # tokens kept -> side of the kept block
WORDS = (35, 50, 68)
# FLOPs of the prefill, two for a multiply-add, with so many words beside the tokens, and per cent fewer than with all.
PREFILL = {
    576: (("8.27T", "8.48T", "8.73T"), None),
    144: (("2.38T", "2.58T", "2.83T"), ("71.2", "69.5", "67.6")),
    64: (("1.31T", "1.51T", "1.75T"), ("84.1", "82.2", "79.9")),
    36: (("0.94T", "1.14T", "1.38T"), ("88.6", "86.5", "84.2")),
}
RATIOS = {256: "2.25", 144: "4", 64: "9", 36: "16", 25: "23", 16: "36", 9: "64", 4: "144"}
QWEN, RATIO = "qwen2-vl", 2 / 3
QWEN_GRIDS = ((36, 24), (3, 7), (1, 1))  # after the merger of 2 x 2 patches
FEWER = "fewer FLOPs than with 576 tokens, per cent"
PICTURES = 6000  # of drawn scenes, where --data names nothing


@dataclass(frozen=True, kw_only=True)
class Recipe(Learning):
    """Both stages, with few tokens a picture. In the first the connector learns alone.

    Args:
        reducer: "none" trains the same model with all tokens.
        keep_side: h' = w' of the grid that is left.
    """

    reducer: Literal["dct", "pool", "random", "none"] = "dct"
    keep_side: int
    connect: Lesson
    instruct: Lesson

    @property
    def steps(self) -> int:
        """Updates of both stages."""
        return self.connect.steps + self.instruct.steps

    def scaled(self, steps: int | None) -> Recipe:
        """`steps` updates in all, shared among the two in the same proportion, one at least for each."""
        if steps is None:
            return self
        first = max(1, round(steps * self.connect.steps / self.steps))
        rest = replace(self.instruct, steps=max(1, steps - first))
        return replace(self, connect=replace(self.connect, steps=first), instruct=rest)

    def fields(self) -> dict[str, Any]:
        """Those of `LVLMConfig`."""
        few = {} if self.reducer == "none" else {"reducer": self.reducer, "keep_side": self.keep_side}
        return {**super().fields(), **few}


_MUON = Optimiser(kind="muon", lr=1e-3)
RECIPES = {
    "mini": Recipe(
        keep_side=4, row_length=512, connect=Lesson(steps=60, rows=8, optimiser=_MUON),
        instruct=Lesson(steps=340, rows=8, optimiser=_MUON), lora=MINI_LORA,
    ),
    # The paper's own settings were not at hand; these are LLaVA-1.5's, in rows that hold about as many of its pictures.
    "published": Recipe(
        keep_side=12, row_length=2048,
        connect=Lesson(steps=2180, rows=24, accumulate=4, optimiser=Optimiser(lr=1e-3, weight_decay=0.0, warmup=0.03)),
        instruct=Lesson(
            steps=5197, rows=32, accumulate=8,
            optimiser=Optimiser(lr=2e-5, weight_decay=0.0, warmup=0.03, factors=RATES),
        ),
    ),
}  # fmt: skip


def llava(tokens: int) -> str:
    """The variant's name."""
    return f"llava-1.5-7b-{tokens}"


@paper("fourier-vlm")
class FourierVLM(Paper):
    """The grid of visual tokens passes a low-pass filter and shrinks before the language model reads it."""

    variants = (llava(ALL), *map(llava, SIDES), QWEN)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        return {
            "parts": [
                "DCT of the grid, orthonormal, of each channel; the lowest block; the way back at its size",
                "one matrix a side with orthonormal rows: as the FFT, and cheaper at these sizes",
                "before the connector, in fp32; the class token is left out, every tile by itself",
                "a kept side above the grid's leaves the grid as it is",
                "no parameters: reducer=dct with keep_side or keep_ratio in any language model with eyes",
            ],
            "stages": [
                f"{size}: connector, {one.connect.steps:,} steps of captions; connector and language model,"
                f" {one.instruct.steps:,} steps of dialogues; {one.keep_side} x {one.keep_side} tokens a picture"
                for size, one in RECIPES.items()
            ],
            "options": [
                "--set keep_side=2 leaves fewer tokens; --set reducer=pool, random or none is the same training with"
                " another reducer, or with all tokens",
                "norm: orthonormal as published; none, the other form of the official code; mean, which keeps a"
                " constant what it is, for models that are not trained with it",
                "coefficients: the kept frequencies themselves as tokens, without the way back",
                *TRAINING,
            ],
            "claims": [
                "LLaVA-1.5: up to 83.8 % fewer FLOPs and 31.2 % faster generation (abstract), more than 96 % of the"
                " accuracy kept (third version); of how many tokens is not said: 64 with some 37 words, or 36 with"
                " some 70, cost so much less",
                "trained by others (Braco, 8 benchmarks, share of what 576 tokens reach): 25 tokens 92.9 %, 16 tokens"
                " 90.3 %, 9 tokens 88.5 %, 4 tokens 83.5 %",
            ],
            "of this library's making": [
                "the published training was not at hand; the settings of LLaVA-1.5, with the reducer in both stages,"
                " are what it is taken to be",
            ],
            "not built": [
                "Qwen2-VL itself: what is left of its grids is counted here; its rotary positions are not built",
                "the reducer behind the connector",
            ],
        }

    def figures(self) -> Sequence[Figure]:
        """Tokens, parameters and the counted cost of the prefill."""
        found = [
            Figure("CLIP ViT-L/14, 23 blocks, FLOPs", "0.366T", at="image encoder FLOPs", variant=llava(ALL)),
            Figure("24 to 12, multiply-adds", "10.6M", at="multiply-adds of the DCT", variant=llava(144)),
            Figure("parameters that it adds", "0", at="parameters / added", variant=llava(144)),
            Figure("3 x 7 tokens of Qwen-VL become", "2 x 4", at="left of a grid / 3 x 7", variant=QWEN),
        ]
        for tokens, ratio in RATIOS.items():
            name = f"side {SIDES[tokens]}"
            found.append(Figure(f"{name}, tokens", str(tokens), at="tokens", variant=llava(tokens)))
            found.append(Figure(f"{name}, ratio", ratio, at="ratio", variant=llava(tokens)))
        for tokens, (costs, saved) in PREFILL.items():
            rows = [("prefill FLOPs", cost) for cost in costs] + [(FEWER, share) for share in saved or ()]
            found += [
                Figure(f"{tokens} tokens, {words} words, {name}", printed, f"{name} / {words} words", llava(tokens))
                for (name, printed), words in zip(rows, WORDS * 2, strict=False)
            ]
        return found

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Tokens, parameters and FLOPs of LLaVA-1.5-7B at every budget, tokens of Qwen-VL; or one of them."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"fourier-vlm has no variant {variant!r}{nearest(variant, self.variants)}")
        return _qwen() if variant == QWEN else _llava(int(variant.rpartition("-")[2]))

    def train(self, options: TrainOptions) -> Path:
        """Train a language model with eyes that reads few tokens, and write it to `options.out`/model."""
        recipe = change(RECIPES[options.size].scaled(options.steps), options.settings)
        parts = Parts.of(options.size, options.parts)
        _ = recipe.connect.at_once, recipe.instruct.at_once  # what cannot be is refused before anything is trained
        sketch = parts.sketch(**recipe.fields())
        if "keep_side" in options.settings:
            _check_fewer(recipe, sketch)
        recipe.check(sketch)
        default: World = ScenesWorld(train_pictures=PICTURES)  # type: ignore[assignment]
        taught = open_captions(options.data, default), open_dialogues(options.data, default)
        trainer = self.trainer(options, recipe)
        made: list[LVLMForConditionalGeneration] = []

        def stages() -> Iterator[Stage]:
            made.append(model := parts.learner(recipe))
            builder = parts.builder(recipe.places(model), recipe.row_length)
            objective = NextWord(model, recipe.pixels(model))

            def stage(name: str, lesson: Lesson, sources: list[tuple[Source, float]], *trainable: str) -> Stage:
                packer = Packer(builder, lesson.at_once, recipe.row_length, pad_id=parts.pad_id)
                loader = Loader(
                    Mixture(sources), packer, seed=options.seed, rank=trainer.rank, world_size=trainer.world,
                    workers=options.reading_threads,
                )  # fmt: skip
                return Stage(
                    name=name, model=model, objective=objective, loader=loader, steps=lesson.steps,
                    trainable=trainable, accumulate=lesson.accumulate, optimiser=lesson.optimiser, counts=_learned,
                )  # fmt: skip

            yield stage("connect", recipe.connect, taught[0], "connector.*")
            yield stage("instruct", recipe.instruct, taught[1], *recipe.trainable)

        trainer.run(stages(), recipe.steps)
        if trainer.main:
            parts.save(made[0].eval(), options.out / "model", recipe.tiles)
        return options.out / "model"

    def study(self) -> Study:
        """The study of low-pass, pooling and random dropping at 4 and 9 tokens."""
        return headline()


def open_dialogues(data: Sequence[str], default: World) -> list[tuple[Source, float]]:
    """The dialogues and questions that `--data` names, each source with as many samples as its share; captions, where
    there are none."""
    worlds = [open_world(name) for name in data] or [default]
    tasks = [next((one for one in ("conversations", "questions") if one in world.tasks), None) for world in worlds]
    found = [world.source(task) for world, task in zip(worlds, tasks, strict=True) if task is not None]
    return [(source, float(len(source))) for source in found] or open_captions(data, default)


def _check_fewer(recipe: Recipe, model: LVLMForConditionalGeneration) -> None:
    """Raise UserError where more tokens are asked for than there are: the whole grid would pass as it is."""
    size = model.config.vision_config.image_size
    rows, columns = model.vision.grid_of(size, size)
    if recipe.reducer != "none" and recipe.keep_side > min(rows, columns):
        raise UserError(
            f"keep_side is {recipe.keep_side}, and the encoder's grid is {rows} x {columns}: more tokens are asked for"
            f" than there are; give {min(rows, columns)} or less"
        )


def _learned(batch: Batch) -> dict[str, int]:
    """How many words the objective of a stage asks for."""
    return {"words": int((batch.labels != IGNORED).sum())}


def _llava(tokens: int) -> dict[str, Any]:
    fields: dict[str, Any] = {} if tokens == ALL else {"reducer": "dct", "keep_side": SIDES[tokens]}
    spent = 0
    with torch.device("meta"):
        model = LVLMForConditionalGeneration(LVLMConfig(**fields))
        if model.slot is not None:
            grid = torch.empty(1, ALL, model.vision.width)
            reduction = model.slot.reducer(grid, (SIDES[tokens],) * 2, grid=(SIDE, SIDE))
            spent = macs(_Applied(reduction.map), {"x": grid})
    total, left = count(model)["parameters"], model.num_image_tokens()
    own, seen = _uncompressed()
    costs = {words: (_vicuna(left + words), _vicuna(ALL + words)) for words in WORDS}
    return {
        "parameters": {"total": total, "added": total - own},
        "tokens": left,
        "ratio": ALL / left,
        "image encoder FLOPs": seen,
        "multiply-adds of the DCT": spent,
        "prefill FLOPs": {f"{words} words": ours for words, (ours, _) in costs.items()},
        FEWER: {f"{words} words": 100 * (1 - ours / full) for words, (ours, full) in costs.items()},
    }


@cache
def _vicuna(positions: int) -> int:
    """FLOPs of the prefill of Vicuna-7B."""
    return prefill(LVLMConfig().text_config, positions)


@cache
def _uncompressed() -> tuple[int | float, int]:
    """Parameters of LLaVA-1.5-7B, and FLOPs of the part of its encoder that it reads."""
    config = LVLMConfig()
    with torch.device("meta"):
        encoder = AutoModel.from_config(_without_last_block(config.vision_config))
        seen = macs(encoder, {"pixel_values": torch.empty(1, 3, 336, 336)})
        return count(LVLMForConditionalGeneration(config))["parameters"], 2 * seen


def _without_last_block(vision: Any) -> Any:
    """LLaVA-1.5 reads the last block but one."""
    given = vision.to_dict()
    inner = given["vision_config"]
    given["vision_config"] = {**inner, "num_hidden_layers": inner["num_hidden_layers"] - 1}
    return type(vision).from_dict(given)


class _Applied(nn.Module):
    def __init__(self, found: Map) -> None:
        super().__init__()
        self.found = found

    def forward(self, x: Tensor) -> Tensor:
        return self.found(x)


def _qwen() -> dict[str, Any]:
    slot = Slot(reducer=create("dct"), ratio=RATIO)
    left = {grid: slot.left(grid) for grid in QWEN_GRIDS}
    return {
        "parameters": {"added": 0},
        "left of a grid": {f"{h} x {w}": f"{rows} x {columns}" for (h, w), (rows, columns) in left.items()},
        "placeholders": {f"{h} x {w}": rows * columns for (h, w), (rows, columns) in left.items()},
    }
