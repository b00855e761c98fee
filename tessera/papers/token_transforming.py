"""Token Transforming: A Unified and Training-Free Token Compression Framework for Vision Transformer Acceleration
(2506.05709).

Fewer tokens are Y = W X. Pruning and merging are sparse W, in which each token serves at most one output; a dense W,
made from the tokens themselves, lets each token serve many, and a trained ViT goes on with fewer tokens as it is. The
reducers are in `tessera.reduce`, the ViT that holds one in `tessera.models.reduced_vit`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tessera.classifier import Classifier
from tessera.classifier import load as load_classifier
from tessera.data.images import Augment
from tessera.errors import CheckpointError, UserError, nearest, reason
from tessera.models.classifier import IMAGENET, ImageClassifier
from tessera.models.lvlm import LVLMConfig
from tessera.models.lvlm.slot import Slot
from tessera.objectives.classification import Mixing
from tessera.papers.classifying import ClassRecipe, asked, finish, judged, learned, open_pictures, starting_backbone
from tessera.papers.figures import Figure
from tessera.papers.registry import Paper, TrainOptions, paper, say
from tessera.papers.settings import CONFIG
from tessera.papers.token_transforming_study import FURTHER, headline
from tessera.reduce.base import mean_importance
from tessera.reduce.registry import create, options_of
from tessera.reduce.schedule import KEEP
from tessera.reduce.transforming import TAU
from tessera.study.counting import count, macs, prefill
from tessera.study.design import Study
from tessera.train.optim import Optimiser
from tessera.vision.vit import PlainViTConfig
from tessera.vision.vit_published import load_published
from tessera.weights import load_state

PART = "classifier"
CLASSES = [f"class {number}" for number in range(1000)]  # as many as ImageNet has
SIDE = 224
# DeiT-S with 1000 classes; fields of the schedule, and 10^9 multiply-adds by closed form, without those that make W.
SCHEDULES: dict[str, tuple[dict[str, Any] | None, str]] = {
    "none": (None, "4.599"),
    "remove-12": ({"remove": 12, "reduce_blocks": list(range(12))}, "2.844"),
    "remove-13": ({"remove": 13, "reduce_blocks": list(range(12))}, "2.703"),
    "keep-0.7": ({"keep": 0.7}, "2.997"),
    "keep-0.65": ({"keep": 0.65}, "2.799"),
    "keep-0.6": ({"keep": 0.6}, "2.608"),
}
# LLaVA-1.5-7B that reads a quarter of a picture behind its second layer; the paper's own place is not known.
LLAVA, AFTER, GRID, LEFT, WORDS = "llava-1.5-7b-144", 2, (24, 24), 144, 50


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """How the trained classifier is to see fewer tokens.

    Args:
        reducer: a name of `tessera.reduce`.
        keep: share of the tokens left in each of the blocks.
        blocks: counted from 0; none stands for a quarter, half and three quarters of the depth.
        tau: temperature of "row" and "column".
    """

    reducer: str = "column"
    keep: float = KEEP
    blocks: int | list[int] = field(default_factory=list)
    tau: float = TAU
    proportional: bool = True

    def fields(self) -> dict[str, Any]:
        """Those of `ReducedViTConfig`.

        Raises:
            UserError: there is no such reducer, or a value that it refuses.
        """
        options = {"tau": self.tau} if "tau" in options_of(self.reducer) else {}
        create(self.reducer, **options)
        blocks = [self.blocks] if isinstance(self.blocks, int) else self.blocks
        return {
            "reducer": self.reducer, "reducer_options": options, "keep": self.keep, "reduce_blocks": blocks,
            "proportional": self.proportional,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe(ClassRecipe):
    """With the fields of a plain ViT, and of what is done to it afterwards."""

    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: PlainViTConfig})
    reduce: Reduce = Reduce()


RECIPES = {
    "mini": Recipe(
        backbone="vit-mini", model={"num_hidden_layers": 8, "initializer_range": 0.1}, steps=800, batch=64,
        optimiser=Optimiser(kind="muon", lr=1e-3), augment=Augment(crop=0.7, flip=0.5), mixing=Mixing(chance=0.5),
    ),
    # The classifier itself is DeiT's, which the paper takes as published: --parts classifier=FOLDER.
    "published": Recipe(
        backbone="vit-s16", steps=300 * 1_281_167 // 1024, batch=1024,
        optimiser=Optimiser(lr=1e-3, weight_decay=0.05, warmup=5 / 300, floor=0.01, clip=None),
        augment=Augment(crop=0.08, flip=0.5),
    ),
}  # fmt: skip


@paper("token-transforming")
class TokenTransforming(Paper):
    """A trained vision transformer goes on with fewer tokens, each a mixture of many, and nothing is trained."""

    variants = (*SCHEDULES, LLAVA)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        return {
            "parts": [
                "reducers as one family, W with rows that sum to 1: random, prune, evit, tome, nearest, pool, dct, row,"
                " column, projection",
                "between attention and MLP of a block, so that its keys and its class token's query are at hand",
                "sizes carried from step to step, their logarithms added to the attention scores",
                "the class token keeps a row of its own",
                "P^T Y puts tokens back on the grid, for dense heads; a place whose token was dropped reads the nearest"
                " kept one",
                "any ViT of plain blocks: ours, and ViT, DeiT, masked autoencoders and DINOv2 as published, whose"
                " weights become those of a plain ViT",
                "in a language model with eyes, before its connector or inside it: reduce_after layers read all visual"
                " tokens, those behind them what is left, at the places of the centres",
            ],
            "stages": [
                "none: a trained classifier is taken as it is (--parts classifier=FOLDER)",
                *(
                    f"{size}, where there is none yet: {one.backbone}, {one.steps:,} steps of {one.batch},"
                    f" {one.optimiser.kind}, rate {one.optimiser.lr}"
                    for size, one in RECIPES.items()
                ),
            ],
            "claims": [
                "DeiT-S: 40 % fewer FLOPs, 1.5 times as fast, 0.1 points less accurate (79.8 before), without training"
                " (abstract); the schedule is not known: 12 or 13 tokens less in every block, or 0.65 three times, come"
                " nearest",
                "gains in segmentation, detection, depth estimation and language generation (abstract); no figures",
            ],
            "of this library's making": [
                "how the dense W is computed: only the abstract could be read, and no code was published. Here: cosines"
                f" of keys with far-apart centres, over {TAU}, through a softmax over the outputs (column) or the"
                " tokens (row)",
                "inside a language model: where, and what tokens are compared by, their states there, and weighed by,"
                " how much their picture's tokens attend to them",
            ],
            "not built": [
                "segmentation, detection and depth with fewer tokens, which ask for tokens to be spread out again",
                "pooling by learned queries, which has to be trained",
                "fewer tokens in the blocks of CLIP and SigLIP, of DeiT with a distillation token, and of DINOv2 with"
                " SwiGLU or registers",
                "a dense head to train on one's own pictures: the study fits one, `ReducedViT` gives it its tokens",
                "a correction of shrunken norms",
                "sizes in the attention of a language model",
                "a choice by the question's attention, which words said later would change",
                "RandAugment and random erasing of DeiT's own training",
            ],
        }

    def figures(self) -> Sequence[Figure]:
        """Parameters of DeiT-S, and the multiply-adds of each schedule by closed form, beside those traced here."""
        found = [Figure("DeiT-S, parameters", "22,050,664", at="parameters / total", variant="none")]
        for name, (_, gmacs) in SCHEDULES.items():
            label = f"DeiT-S, {name.replace('-', ' ')}, GMACs without W (closed form)"
            found.append(Figure(label, gmacs, at="gmacs / without W", variant=name))
        return found

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters, cost and tokens of DeiT-S and of LLaVA with the default reducer; all variants, or one."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"token-transforming has no variant {variant!r}{nearest(variant, self.variants)}")
        return _inside() if variant == LLAVA else _size(SCHEDULES[variant][0])

    def train(self, options: TrainOptions) -> Path:
        """A classifier that sees fewer tokens, in `options.out`/model: a trained one as it is (`--parts
        classifier=FOLDER`), or one that learns the pictures first and is kept in `options.out`/full."""
        recipe = asked(RECIPES[options.size], options)
        fields = recipe.reduce.fields()
        if PART in options.parts:
            return _taken(options, fields)
        start = starting_backbone(recipe, options, lambda file: load_published(file)[0])
        with torch.device("meta"):  # what cannot be is refused before anything is trained
            eyes = nn.Module.to(copy.deepcopy(start()), "meta")  # as model.to, whose types a checker cannot follow
            ImageClassifier.over(eyes, CLASSES).reduced(**fields)
        trainer, model, world = learned(self, options, recipe, start)
        finish(trainer, model, world, options.out / "full")
        return finish(trainer, model.reduced(**fields), world, options.out / "model")

    def study(self) -> Study:
        """The study of reducers on one trained classifier."""
        return headline()

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """The same arms on other pictures."""
        return FURTHER


def _size(schedule: Mapping[str, Any] | None) -> dict[str, Any]:
    with torch.device("meta"):
        model = ImageClassifier.over("vit-s16", CLASSES)
        picture = {"pixel_values": torch.empty(1, 3, SIDE, SIDE)}
        full = macs(model, picture)
        bare = whole = full
        eyes: Any = model.backbone
        left = [math.prod(eyes.grid_of(SIDE, SIDE))]
        if schedule is not None:
            # Centres by importance, as those far apart compare the same rows, one by one, which takes long to trace.
            column = model.reduced(reducer_options={"centres": "importance"}, **schedule)
            eyes = column.backbone
            left += eyes.schedule.counts(left[0], len(eyes.blocks)).values()
            # Dropping at fixed places takes no multiply-adds: what is left is the encoder alone.
            bare, whole = macs(model.reduced(reducer="random", **schedule), picture), macs(column, picture)
    return {
        "parameters": {"total": count(model)["parameters"], "added": 0},
        "gmacs": {"without W": bare / 1e9, "making W": (whole - bare) / 1e9, "total": whole / 1e9},
        "fewer gmacs without W, per cent": 100 * (1 - bare / full),
        "tokens": {"first block": 1 + left[0], "last block": 1 + left[-1]},
    }


def _inside() -> dict[str, Any]:
    """The prefill of LLaVA-1.5-7B, as FLOPs, two for a multiply-add."""
    text, tokens = LVLMConfig().text_config, math.prod(GRID)
    slot = Slot(reducer=create("column", centres="importance"), tokens=LEFT)
    full = prefill(text, tokens + WORDS)
    fewer = prefill(text, tokens + WORDS, left=LEFT + WORDS, after=AFTER)
    with torch.device("meta"):
        heads = torch.empty(1, text.num_attention_heads, tokens, text.head_dim)
        made = {"x": torch.empty(1, tokens, text.hidden_size), "q": heads, "k": heads}
        spent = 2 * macs(_Reducing(slot), made)
    return {
        "parameters": {"added": 0},
        "prefill FLOPs": {"all tokens": full, "without W": fewer, "making W": spent, "total": fewer + spent},
        "fewer FLOPs without W, per cent": 100 * (1 - fewer / full),
        "tokens": {f"first {AFTER} layers": tokens, "last layer": LEFT},
    }


class _Reducing(nn.Module):
    """What a picture's tokens [1, N, d] with queries and keys [1, H, N, D] go through inside a language model."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.slot = slot

    def forward(self, x: Tensor, q: Tensor, k: Tensor) -> object:
        return self.slot.reduce(x, GRID, mean_importance(q, k))


def _taken(options: TrainOptions, fields: Mapping[str, Any]) -> Path:
    """A trained classifier with the reducer, judged where `--data` names pictures."""
    for role in options.parts:
        if role != PART:
            raise UserError(f"with --parts {PART} there is no role {role!r}{nearest(role, [PART])}")
    if options.steps is not None:
        raise UserError(f"nothing is trained with --parts {PART}; leave out --steps")
    trained = Classifier(_classifier(Path(options.parts[PART])))
    reduced = Classifier(trained.model.reduced(**fields))
    if options.data:
        world = open_pictures(options.data)
        unknown = sorted(set(world.classes) - set(trained.classes))
        if unknown:
            raise UserError(f"the classifier knows no class {unknown[0]!r}{nearest(unknown[0], trained.classes)}")
        for name, one in (("all tokens", trained), ("fewer tokens", reduced)):
            say(f"{name}: {judged(one, world)}")
    reduced.save(options.out / "model")
    return options.out / "model"


def _classifier(folder: Path) -> ImageClassifier:
    """A trained classifier over a plain ViT: ours, or a published ViTForImageClassification.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / "tessera.json").is_file():
        return load_classifier(folder).model
    backbone, head = load_published(folder)
    if "weight" not in head:
        raise CheckpointError(f"{folder} holds an encoder without a classifier's weights")
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
        classes = [str(labels.get(str(place), place)) for place in range(len(head["weight"]))]
        file = folder / "preprocessor_config.json"
        entry = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        norms = {name: entry.get(f"image_{name}", usual) for name, usual in IMAGENET.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} says not which classes it knows: {reason(error)}") from error
    # Two of ImageNet's classes are called "crane".
    unique = [name if classes.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(classes)]
    model = ImageClassifier.over(backbone, unique, **{f"image_{name}": value for name, value in norms.items()})
    load_state(model.head, head, str(folder))
    return model.eval()
