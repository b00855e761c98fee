"""GR-1: Unleashing Large-Scale Video Generative Pre-training for Visual Robot Manipulation (2312.13139).

A small GPT reads a goal in words, states and pictures of the last steps. Learned queries, which nothing reads, ask it
for the next action and for the pictures some steps ahead. Foreseeing pictures needs no robot: the same GPT first learns
it from clips with a sentence each, then actions and pictures together from a robot's episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from tessera.actor import Actor
from tessera.evaluate.imitation import action_errors
from tessera.evaluate.intervals import bootstrap_mean
from tessera.models.policy import GR1Config, GR1Policy
from tessera.models.policy.published import UNREAD, load_published
from tessera.papers.figures import Figure
from tessera.papers.gr_1_study import headline
from tessera.papers.gr_1_training import (
    MINI,
    POLICY,
    SMALL,
    TEXT,
    VISION,
    Learning,
    Material,
    Recipe,
    Weights,
    check_parts,
    check_policy,
    meta_policy,
    open_data,
)
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import change
from tessera.study.counting import count
from tessera.study.design import Study
from tessera.train.features import FeatureStore
from tessera.train.optim import Optimiser
from tessera.train.policies import batches_of
from tessera.train.stage import Stage
from tessera.vision.registry import create
from tessera.zoo.parts import trained_part
from tessera.zoo.senses import read_senses

RECIPES = {
    "mini": Recipe(
        model=SMALL,
        pretrain=Learning(steps=1000, batch=16, ahead=1, optimiser=Optimiser(kind="muon", lr=1e-3)),
        act=Learning(steps=3000, batch=16, ahead=3, optimiser=Optimiser(kind="muon", lr=1e-3)),
    ),
    # The weight of the arm is the community trainer's; without it actions, which are small numbers, hardly count.
    "published": Recipe(
        weights=Weights(arm=100.0),
        pretrain=Learning(
            epochs=50, batch=1024, ahead=1, optimiser=Optimiser(lr=3.6e-4, weight_decay=0.0, warmup=0.1, floor=0.0)
        ),
        act=Learning(
            epochs=20, batch=512, ahead=3, optimiser=Optimiser(lr=1e-3, weight_decay=0.0, warmup=0.05, floor=0.0)
        ),
    ),
}  # fmt: skip


@paper("gr-1")
class GR1(Paper):
    """A GPT learns from clips what comes next, and from a robot's episodes what to do about it."""

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        stages = []
        for size, one in RECIPES.items():
            first, second = (
                f"{how.steps:,} steps" if how.steps else f"{how.epochs} epochs" for how in (one.pretrain, one.act)
            )
            stages.append(
                f"{size}: {first} of {one.pretrain.batch} clips, {one.pretrain.ahead} step ahead, then {second} of"
                f" {one.act.batch} windows of episodes, {one.act.ahead} steps ahead"
            )
        return {
            "parts": [
                "frozen encoders: any image backbone, as the ViT of MAE (--parts vision=FOLDER), and the text half of a"
                " CLIP (--parts text=FOLDER); mini/clip is both at mini size, as in the study; --parts vision=mini/mae"
                " is an encoder as the paper's",
                "a perceiver resampler, 9 latents for the patches of a picture of any camera",
                "GPT-2 blocks without positions, with ReLU, under a mask that hides every query from everyone",
                "an action head of linear layers; a decoder of two blocks from 10 queries to the patches of a picture",
            ],
            "stages": [
                *stages,
                "--data CLIPS EPISODES, or one LeRobot folder for both, or tabletop, whose clips are of other tasks",
                "--parts policy=FILE starts from a released policy (safetensors) or model/policy and learns to act",
            ],
            "claims": [
                "CALVIN, four scenes (abstract): first of five tasks 88.9 % to 94.9 %, average length 3.06 to 4.21; an"
                " unseen scene 53.3 % to 85.4 %",
                "no video < foreseeing without pre-training < with it (summary of the ablation)",
            ],
            "other than in the text": [
                "states and actions are brought to mean 0 and spread 1; the release has those of CALVIN as they are",
                "features of pictures are computed once, so that pictures are not shifted at random",
                "at mini size patches are told their places, which features of mini/clip hardly say",
            ],
            "not built": ["Ego4D and the CALVIN simulator", "chunks of ten actions (community trainer)"],
        }  # fmt: skip

    def figures(self) -> Sequence[Figure]:
        """What the paper prints, and what follows from the released code."""
        at = "parameters / {}".format
        return (
            Figure("trained parameters", "46M", at=at("trained")),
            Figure("trained parameters, from the released code", "45,988,039", at=at("trained")),
            Figure("with both encoders", "195M", at=at("total")),
            Figure("with both encoders, from the released code", "195,214,791", at=at("total")),
            Figure("with the whole CLIP, first version", "283M", at=at("total with the whole CLIP")),
            Figure("with the whole CLIP, from the released code", "283,064,008", at=at("total with the whole CLIP")),
            Figure("tokens of a step", "43", at="tokens / step"),
            Figure("tokens of a window", "430", at="tokens / window"),
            Figure("patches a latent", "21.8", at="patches a latent"),
        )

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters and tokens of the released configuration, and those of its encoders."""
        if variant is not None:
            return super().size(variant)
        config = GR1Config()
        with torch.device("meta"):
            policy = GR1Policy(config)
            eyes = count(create("vit-b16"))["parameters"]
            words = count(CLIPTextModelWithProjection(CLIPTextConfig()))["parameters"]
            clip = count(CLIPModel(CLIPConfig()))["parameters"]
        parts = parts_of(policy)
        trained = sum(parts.values())
        patches, cameras = config.grid[0] * config.grid[1], len(config.cameras)
        step = 2 + cameras * (config.latents + 1) + 1 + cameras * (config.latents + 1)
        return {
            "parameters": {
                **parts, "trained": trained, "image encoder": eyes, "text encoder": words, "whole CLIP": clip,
                "total": trained + eyes + words, "total with the whole CLIP": trained + eyes + clip,
            },
            "tokens": {"step": step, "window": step * config.window},
            "patches a latent": patches / config.latents,
        }  # fmt: skip

    def train(self, options: TrainOptions) -> Path:
        """Learn from clips, then from a robot's episodes; the policy goes to `options.out`/model with its encoders."""
        check_parts(options.parts, options.size)
        pretrained = POLICY in options.parts
        recipe = change(RECIPES[options.size].scaled(options.steps, pretrained), options.settings)
        ready = trained_part(options.parts[POLICY], GR1Policy, load_published) if pretrained else None
        named = MINI | dict(options.parts)
        senses = read_senses(named[VISION], named[TEXT])
        data = open_data(recipe, options.data)
        config = recipe.config(senses, data)
        meta_policy(config)
        if ready is not None:
            check_policy(ready, config)
        trainer = self.trainer(options, recipe)
        store, made = FeatureStore(senses.look), list[GR1Policy]()
        places = {
            "seed": options.seed, "rank": trainer.rank, "world_size": trainer.world, "workers": options.reading_threads
        }  # fmt: skip

        def stages() -> Iterator[Stage]:
            policy = ready or GR1Policy(config)
            if ready is None:
                yield recipe.stage("pretrain", policy, senses, store, data.clips, **places)
            yield recipe.stage("act", policy, senses, store, data.robot, **places)
            made.append(policy.eval())

        trainer.run(stages())
        if trainer.main:
            Actor(made[0], senses).save(options.out / "model")
            trainer.reporter.note(judged(made[0], recipe, data, store, senses))
        return options.out / "model"

    def study(self) -> Study:
        """With and without foreseeing, and pre-trained against from scratch, from few demonstrations."""
        return headline()


def parts_of(policy: GR1Policy) -> dict[str, int]:
    """Trained values of each part. The release also counts a word table of one row, which nothing reads."""
    rest = ("goal", "state", "time", "embed_norm", "cameras")
    cameras: Any = policy.cameras
    queries = sum(one.weight.numel() for one in (policy.action_query, *(camera.queries for camera in cameras)))
    numbers = {name: sum(one.numel() for one in part.parameters()) for name, part in policy.named_children()}
    return {
        "GPT": numbers["blocks"] + numbers["norm"],
        "word table that nothing reads": UNREAD,
        "resampler": numbers["resampler"],
        "embeddings": sum(numbers[name] for name in rest) + numbers["action_query"] - queries,
        "queries": queries,
        "action head": numbers["action"],
        "image decoder": numbers["decoder"],
    }


def judged(policy: GR1Policy, recipe: Recipe, data: Material, store: FeatureStore, senses: Any) -> str:
    """A sentence: how far held-out actions are from the expert's."""
    if not len(data.heldout):
        return "there is no held-out episode to judge it on"
    lesson = recipe.lesson("act", data.cameras)
    batches = batches_of(data.heldout, senses, store, lesson, recipe.act.batch)
    error = bootstrap_mean(action_errors(policy, lesson, batches))
    return f"held out: mean distance of actions from the expert's in {error.n} episodes {error.text(False, 3)}"
