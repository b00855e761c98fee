"""The study of VPD: what a U-Net that learned to paint from words brings to the segmentation of pictures.

All arms fine-tune the U-Net of `mini/diffusion` with the same head on the same drawn pictures in the same order, for
the same steps and at the same rate; what is segmented is each of six shapes, and the background.

    vpd              as the paper has it: trained to paint, clean latent, timestep 1, class names, attention maps
    random           the U-Net starts from random weights
    no maps          the attention maps are no features; the words still enter the U-Net
    shuffled names   each class is told to the U-Net by the name of another one
    t=500, t=999     the U-Net is told that the latent is half, or all noise; it is as clean as before

Held-out pictures are of colours and places in which training never showed that shape. A further study
(`--study latents`) leaves latents as the autoencoder gives them, as the official code does, beside those that the U-Net
was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from tessera.data.dense import DenseReader, DenseScenes, Task
from tessera.data.sample import Sample
from tessera.data.source import Source, Split
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import UserError
from tessera.evaluate.dense import model_overlap
from tessera.files import short_hash
from tessera.models.diffusion.perception import PerceptionModel
from tessera.perceiver import Perceiver
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.training import trained
from tessera.train.dense import dense_loader, dense_stage
from tessera.train.engine import Trainer
from tessera.train.optim import Optimiser
from tessera.train.select import choose_precision
from tessera.zoo.text_to_image import TextToImage, read_text_to_image

SLUG = "vpd"
PART = "diffusion"
PAINTER = "mini/diffusion"
TASK: Task = "segmentation"
UNET_WEIGHTS = "pyramid.*"  # its parameters
# Fields of the configuration at mini size: one resolution, whose maps are kept; latents as the painter knows them.
MINI: dict[str, Any] = {"image_size": 64, "largest_map": 1.0, "scaled": True, "finer": 2, "width": 128}
PLAIN = ("{}", "a {}", "the {}", "there is a {}")  # sentences of drawn things
METRIC = "IoU of a picture"
ARMS: dict[str, dict[str, Any]] = {
    "vpd": {},
    "random": {"start": "random"},
    "no maps": {"largest_map": 0.0},
    "shuffled names": {"names": "shuffled"},
    "t=500": {"timestep": 500},
    "t=999": {"timestep": 999},
}
LATENTS: dict[str, dict[str, Any]] = {"scaled": {}, "as they are": {"scaled": False}}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets, and how many pictures there are. `unet` is a factor on the rate of the U-Net."""

    steps: int
    batch: int
    lr: float
    unet: float
    train_pictures: int
    heldout_pictures: int


BUDGET = Budget(steps=280, batch=8, lr=2e-3, unet=0.25, train_pictures=2000, heldout_pictures=300)
_SPEED = "adapts in fewer steps than other pre-training (abstract), in figures that were not at hand"
CLAIMS = (
    Claim(
        name="a U-Net that learned to paint segments better than a new one", metric=METRIC, arm="vpd", against="random",
        expect="higher", published=_SPEED,
    ),
    Claim(
        name="attention maps help", metric=METRIC, arm="vpd", against="no maps", expect="higher",
        published="an ablation of the paper that was not at hand",
    ),
    Claim(
        name="the classes' own names are better than one another's", metric=METRIC, arm="vpd",
        against="shuffled names", expect="higher", published="an ablation of the paper that was not at hand",
    ),
    Claim(
        name="a timestep near 0 is better than one near the end", metric=METRIC, arm="vpd", against="t=999",
        expect="higher", published="larger timesteps hurt segmentation (an answer of the authors)",
    ),
    Claim(
        name="a timestep in the middle is not better than one near 0", metric=METRIC, arm="t=500", against="vpd",
        expect="not higher", margin=0.01, published="larger timesteps hurt segmentation (an answer of the authors)",
    ),
    Claim(
        name="a timestep near the end is not better than one in the middle", metric=METRIC, arm="t=999",
        against="t=500", expect="not higher", margin=0.01,
        published="larger timesteps hurt segmentation (an answer of the authors)",
    ),
)  # fmt: skip
LATENTS_CLAIM = Claim(
    name="latents that the U-Net was trained on serve better than unscaled ones", metric=METRIC, arm="scaled",
    against="as they are", expect="higher", published="the official code leaves them unscaled and compares neither",
)  # fmt: skip
NOTES = (
    "IoU of a picture is the mean over the classes that it shows or that are seen in it; mIoU is over all pictures.",
    "The paper trains the U-Net at a tenth of the head's rate, here at a quarter: so is a new one not held back.",
)


class Seen:
    """A DenseReader that gives clean latents in place of pictures, each picture's encoded once."""

    def __init__(self, model: PerceptionModel, classes: Sequence[str]) -> None:
        self.model, self.read = model, DenseReader(TASK, classes, Perceiver(model).pixels)
        self._known: dict[str, dict[str, np.ndarray]] = {}

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`latents` and `labels` of a sample."""
        if sample.id not in self._known:
            found = self.read(sample)
            pixels = torch.from_numpy(found.pop("pixel_values"))[None].to(self.model.device, self.model.dtype)
            self._known[sample.id] = {"latents": self.model.encode(pixels)[0].float().cpu().numpy(), **found}
        return self._known[sample.id]


@dataclass
class Bench:
    """Arms over drawn shapes.

    Args:
        arms: by name, what sets each apart: fields of the configuration, "start" and "names".
        work: the folder of the study.
    """

    slug: str
    arms: Mapping[str, Mapping[str, Any]]
    claims: Sequence[Claim]
    budget: Budget
    work: Path
    title: str = field(kw_only=True)

    @cached_property
    def world(self) -> DenseScenes:
        """Drawn shapes, of which held-out ones show combinations that training does not."""
        budget = self.budget
        drawn = ScenesWorld(train_pictures=budget.train_pictures, heldout_pictures=budget.heldout_pictures)
        return DenseScenes(TASK, drawn)

    @cached_property
    def readers(self) -> dict[bool, Seen]:
        """By whether latents are scaled."""
        return {}

    def source(self, split: Split) -> Source:
        """The pictures of a split."""
        return self.world.source(TASK, split)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "painter": PAINTER,
            "model": MINI,
            "templates": PLAIN,
            "classes": len(self.world.classes),
            "train": self.source("train").fingerprint(),
            "heldout": self.source("heldout").fingerprint(),
            "budget": asdict(self.budget),
            "precision": choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        }

    def model(self, arm: Mapping[str, Any], seed: int) -> PerceptionModel:
        """The model of an arm before it learns; new weights follow from PyTorch's generator."""
        parts: TextToImage = read_text_to_image(PAINTER)
        fields = {**MINI, **{name: value for name, value in arm.items() if name not in ("start", "names")}}
        vectors = parts.class_vectors(self.world.classes, PLAIN)
        model = parts.perceiver(TASK, self.world.classes, vectors, **fields)
        if arm.get("names") == "shuffled":
            order = np.random.default_rng([seed, len(self.world.classes)]).permutation(len(self.world.classes))
            model.class_vectors.copy_(model.class_vectors[torch.from_numpy(order)].clone())
        if arm.get("start") == "random":
            new = UNet2DConditionModel.from_config(dict(model.config.unet_config or {}))
            model.pyramid.unet.load_state_dict(new.state_dict())
        return model

    def outcome(self, name: str, seed: int) -> Outcome:
        """An arm trained with a seed and judged on every held-out picture."""
        arm, budget = self.arms[name], self.budget
        work = self.work / "training" / f"{short_hash([name, dict(arm), self.config])}-seed-{seed}"
        trainer = Trainer(work, config=asdict(budget), seed=seed, resume=True)
        optimiser = Optimiser(lr=budget.lr, factors={UNET_WEIGHTS: budget.unet})

        def stages() -> Any:
            model = self.model(arm, seed)
            scaled = model.config.scaled
            read = self.readers.setdefault(scaled, Seen(model, self.world.classes))
            loader = dense_loader(self.source("train"), read, budget.batch, seed=seed)
            yield dense_stage(model, loader, budget.steps, optimiser=optimiser)

        with trained(trainer, stages(), budget.steps) as done:
            model = done.model.eval()
            found = model_overlap(model, self.source("heldout"), self.readers[model.config.scaled])
            return Outcome(
                metrics={"mIoU": found.mean()}, items={METRIC: found.by_picture().tolist()}, steps=done.steps,
                samples=done.samples,
            )  # fmt: skip

    def study(self) -> Study:
        """All arms and claims."""
        arms = [
            Arm(name=name, run=lambda seed, name=name: self.outcome(name, seed), config=dict(fields))  # type: ignore[misc]
            for name, fields in self.arms.items()
        ]
        return Study(
            slug=self.slug, title=self.title, arms=arms, claims=self.claims, config=self.config,
            tuning="no arm was tuned: steps and rate were set before the first run", notes=NOTES,
        )  # fmt: skip


def headline(work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims."""
    return Bench(
        SLUG, ARMS, CLAIMS, budget, work or WORK / SLUG,
        title="a U-Net that learned to paint as the backbone of segmentation (drawn shapes)",
    ).study()  # fmt: skip


def latents(work: Path, budget: Budget = BUDGET) -> Study:
    """Latents as the U-Net was trained on them against latents as the autoencoder gives them."""
    return Bench(
        work.name, LATENTS, (LATENTS_CLAIM,), budget, work,
        title="clean latents scaled as for painting, or as the autoencoder gives them (drawn shapes)",
    ).study()  # fmt: skip


def _latents(*, data: Path | None, model: Path | None) -> Study:
    if data is not None or model is not None:
        raise UserError(f"the study latents draws its pictures and takes {PAINTER}; leave out --data and --model")
    return latents(WORK / f"{SLUG}-latents")


FURTHER: Mapping[str, Callable[..., Study]] = {"latents": _latents}
