"""The study of VL-GPT: what the image tokenizer should estimate, and whether one objective serves words and pictures.

1. The paper's key ablation. The image tokenizer is trained to estimate the painter's text condition, its image
   condition, or both, at equal steps; then the shipped language model learns to caption from the frozen embeddings.
2. Its unification. On the tokenizer of "both", the language model is pre-trained on words and pictures with the
   squared error of the visual embeddings, or without it.

Arms are the recipe of `vl_gpt.py` with a few fields changed. Margins were chosen before the first run.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tessera.data.loader import Loader
from tessera.data.packing import Batch
from tessera.data.sample import Image
from tessera.data.source import World
from tessera.data.tasks import Mapped
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.files import sha256, short_hash
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.papers.registry import say
from tessera.papers.vl_gpt_data import Streams
from tessera.papers.vl_gpt_measures import (
    Items,
    Shown,
    Subject,
    caption_losses,
    caption_scores,
    captions,
    conditions,
    drawings,
    fit_regression_head,
    picture_first,
)
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.sharing import alone
from tessera.train.engine import Stage, Trainer
from tessera.train.features import FeatureStore
from tessera.train.log import read_lines
from tessera.train.select import choose_precision
from tessera.zoo.foundation import MINI, Foundation, ImageConditioner, TextConditioner, load_mini
from tessera.zoo.parts import locate, quiet

TARGETS = {"text": (0.0, 1.0), "image": (1.0, 0.0), "both": (1.0, 1.0)}  # lambda 1 (image) and lambda 2 (text)
JOINT = {"words and pictures": 1.0, "words only": 0.0}  # weight of the visual embeddings' squared error


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets. The default ends within half an hour on two cores.

    Args:
        align_steps: of the image tokenizer, with `align_batch` pictures each.
        caption_steps, joint_steps: of the language model in parts 1 and 2, with `rows` packed rows each.
        train_pictures: drawn for training, each with `captions_each` captions.
        fitted: of these, how many the linear readouts and the missing regression head are fitted to.
        heldout: pictures of held-out combinations that everything is measured on.
        captioned: of these, how many are captioned word by word.
    """

    align_steps: int = 200
    align_batch: int = 24
    caption_steps: int = 100
    joint_steps: int = 160
    rows: int = 4
    train_pictures: int = 4000
    captions_each: int = 4
    fitted: int = 2000
    heldout: int = 256
    captioned: int = 128


BUDGET = Budget()


def claims(budget: Budget) -> tuple[Claim, ...]:
    """The paper's, in the order of its table; then those of the unification."""
    chance = 1 / budget.heldout
    return (
        Claim(
            name="both keep the image condition", metric="e_v cosine, detokenizer", arm="both", against="image",
            expect="within", margin=0.02, published="picture similarity x100: 80.22 with both, 80.05 with e_v",
        ),
        Claim(
            name="both hold more of the picture than text", metric="e_v cosine, linear readout", arm="both",
            against="text", expect="higher", published="picture similarity x100: 80.22 with both, 73.59 with e_t",
        ),
        Claim(
            name="both caption better than image", metric="caption loss", arm="both", against="image",
            expect="lower", published="CIDEr (higher is better): 133.7 with both, 123.6 with e_v",
        ),
        Claim(
            name="text captions better than image", metric="caption loss", arm="text", against="image",
            expect="lower", published="CIDEr (higher is better): 131.1 with e_t, 123.6 with e_v",
        ),
        Claim(
            name="pictures from words, five times chance", metric="drawn picture recall@1", arm="words and pictures",
            against=5 * chance, expect="higher", published="no figure; one model draws (FID 12.25) and captions",
        ),
        Claim(
            name="pictures need their own loss", metric="drawn picture recall@1", arm="words and pictures",
            against="words only", expect="higher", published="no figure; stressed against earlier work",
        ),
        Claim(
            name="captions do not suffer", metric="caption loss", arm="words and pictures", against="words only",
            expect="not higher", margin=0.03, relative=True, published="no figure; one model does both",
        ),
    )  # fmt: skip


NOTES = (
    "All scores are of pictures whose objects are combinations of colour, shape and place that training never showed.",
    "The paper scores similarity of painted pictures. Here it is that of the painter's image condition e_v, before any"
    " painting: cosine, less the training pictures' mean, so that what all pictures share counts for nothing.",
    'With "text" the detokenizer never learned e_v, so its own estimate is no measure of what the embeddings hold:'
    " both is compared with text by a linear map from embeddings to e_v, fitted afterwards alike for every arm.",
    "The paper's captions are those of the instruction-tuned model by CIDEr; the claims here are of the loss a token"
    " (nats) of true captions, which tells arms apart earlier. CIDEr-D and objects are of free-running captions.",
    "Without the visual loss nothing trains the regression head, and drawing would be at chance by construction:"
    ' "words only" is given the linear head that fits its hidden states to true embeddings best.',
    'What the arms share of a seed is trained once: the tokenizer of both parts\' "both". Features of the frozen parts'
    " are computed once, in the time of the first training.",
)


class Training(Protocol):
    """One run of the recipe: the stages in order, and what they leave."""

    patches: FeatureStore
    model: VLGPTForConditionalGeneration | None

    def stages(self) -> Iterator[Stage]: ...


Begin = Callable[[Foundation, Any, Streams], Training]


class Captioning(Streams):
    """Pre-training that only captions: each picture is read, its caption learned."""

    def pretraining(self, rows: int, row_length: int) -> Loader[Batch]:
        """Pairs, the picture first, packed."""
        return self._packed(
            [(Mapped(source, picture_first), share) for source, share in self._pairs()], rows, row_length
        )


@dataclass
class RememberedImages(ImageConditioner):
    """An ImageConditioner that looks at each picture once."""

    store: FeatureStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = FeatureStore(super().states)

    def states(self, images: Sequence[Image]) -> Tensor:
        """The encoder's patch states [B, S, C]."""
        return self.store(images).to(self.encoder.device)


@dataclass
class RememberedText(TextConditioner):
    """A TextConditioner that reads each sentence once."""

    known: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """e_t [B, T, D]."""
        fresh = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.known]
        if fresh:
            self.known |= dict(zip(fresh, super().__call__(fresh).half().cpu(), strict=True))
        known = [self.known[sentence].float() for sentence in sentences]  # CPU autocast has no stack of float16
        return torch.stack(known).to(self.encoder.device)


@dataclass
class Bench:
    """Everything that the arms share: frozen parts, pictures, features, and where trainings are kept.

    Args:
        begin: makes a run of the recipe from parts, recipe and data.
        recipe: the recipe whose fields the arms change.
        work: the folder of the study, in which a stopped training is found again.
    """

    begin: Begin
    recipe: Any
    budget: Budget
    work: Path
    patches: FeatureStore | None = None

    @cached_property
    def device(self) -> torch.device:
        """Where everything runs."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def foundation(self) -> Foundation:
        """The mini parts, with a memory."""
        with quiet():
            parts = load_mini().to(self.device)
        image, text = parts.image, parts.text
        return replace(
            parts,
            image=RememberedImages(image.painter, image.encoder, image.pixels, image.layers),
            text=RememberedText(text.tokenizer, text.encoder),
        )

    @cached_property
    def world(self) -> World:
        """The pictures; the same for every seed, which decides their order and the first weights."""
        pictures, captions_each = self.budget.train_pictures, self.budget.captions_each
        made: World = ScenesWorld(train_pictures=pictures, captions_each=captions_each)  # type: ignore[assignment]
        return made

    @cached_property
    def fitted(self) -> Shown:
        """Training pictures that readouts are fitted to."""
        return Shown.first(self.world.source("pairs"), self.budget.fitted, self.foundation)

    @cached_property
    def unseen(self) -> Shown:
        """Held-out pictures."""
        return Shown.first(self.world.source("pairs", "heldout"), self.budget.heldout, self.foundation)

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        files = {name: sorted(Path(locate(name)).rglob("*.safetensors")) for name in sorted(set(MINI.values()))}
        return {
            "world": "scenes",
            "budget": asdict(self.budget),
            "recipe": json.loads(json.dumps(asdict(self.recipe))),
            "parts": {name: short_hash([sha256(file) for file in found]) for name, found in files.items()},
            "precision": choose_precision("auto", self.device),
        }

    def study(self) -> Study:
        """Both parts."""
        arms = [
            Arm(name=name, run=lambda seed, name=name: self.target(name, seed),  # type: ignore[misc]
                config={"part": 1, "image_weight": weights[0], "text_weight": weights[1]})
            for name, weights in TARGETS.items()
        ] + [
            Arm(name=name, run=lambda seed, name=name: self.joint(name, seed),  # type: ignore[misc]
                config={"part": 2, "visual_loss_weight": weight})
            for name, weight in JOINT.items()
        ]  # fmt: skip
        return Study(
            slug="vl-gpt", title="what the image tokenizer estimates; one objective for words and pictures",
            arms=arms, claims=claims(self.budget), config=self.shared, notes=NOTES,
            tuning="no arm was tuned: all take the recipe of `tessera train vl-gpt`, in fewer and smaller steps",
        )  # fmt: skip

    def target(self, name: str, seed: int) -> Outcome:
        """Part 1: a tokenizer for this target, and a language model that captions from it."""
        trained = self.train(name, self.changed(self.budget.caption_steps, TARGETS[name]), Captioning, seed)
        few = replace(self.unseen, samples=self.unseen.samples[: self.budget.captioned])
        items = conditions(trained.subject, self.fitted, self.unseen)
        items["caption loss"] = caption_losses(trained.subject, self.unseen)
        items |= caption_scores(captions(trained.subject, few), few)
        return trained.outcome(items, ("align", "language"))

    def joint(self, name: str, seed: int) -> Outcome:
        """Part 2: words and pictures in one model, on the tokenizer of "both", which the two arms share."""
        recipe = self.changed(self.budget.joint_steps, TARGETS["both"], JOINT[name])
        trained = self.train(name, recipe, Streams, seed)
        items: Items = {"caption loss": caption_losses(trained.subject, self.unseen)}
        if not JOINT[name]:
            fit_regression_head(trained.subject, self.fitted)
        items |= drawings(trained.subject, self.fitted, self.unseen)
        return trained.outcome(items, ("language",))

    def changed(self, steps: int, weights: tuple[float, float], visual: float = 1.0) -> Any:
        """The recipe with these steps of the language model and weights of the losses, in the study's sizes."""
        recipe, budget = self.recipe, self.budget
        return replace(
            recipe,
            tokenizer={**recipe.tokenizer, "image_weight": weights[0], "text_weight": weights[1]},
            model={**recipe.model, "visual_loss_weight": visual},
            align=replace(recipe.align, steps=budget.align_steps, batch=budget.align_batch),
            pretrain=replace(recipe.pretrain, steps=steps, batch=budget.rows),
        )

    def train(self, name: str, recipe: Any, data: type[Streams], seed: int) -> Trained:
        """Stage A, or its weights where this seed has trained it before, and the language model after it."""
        say(f"seed {seed}, arm {name}")
        parts = replace(self.foundation, language=copy.deepcopy(self.foundation.language))
        streams = data([(self.world, 1.0)], parts.tokenizer, recipe.tokenizer["num_embeddings"], seed=seed)
        begun = self.begin(parts, recipe, streams)
        stages = self._stages(begun)
        first = {**self.shared, "tokenizer": dict(recipe.tokenizer), "align": asdict(recipe.align)}
        second = {**first, "model": dict(recipe.model), "language": asdict(recipe.pretrain), "data": data.__name__}
        folders = {}
        for stage, config in (("align", first), ("language", second)):
            folders[stage] = self.work / "training" / f"{stage}-{short_hash(config)}-seed-{seed}"
            with alone(self.work, folders[stage]):  # arms of one seed share stage A
                Trainer(folders[stage], config=config, seed=seed, resume=True).run(islice(stages, 1))
        assert begun.model is not None and self.patches is not None
        return Trained(Subject(begun.model.eval(), self.patches, streams.builder, parts.tokenizer), folders)

    def _stages(self, begun: Training) -> Iterator[Stage]:
        for stage in begun.stages():
            # Objectives look it up at each step: all runs share the features that the first has computed.
            self.patches = begun.patches = self.patches or begun.patches
            yield stage


@dataclass(frozen=True)
class Trained:
    """A trained model, and the folders of its stages."""

    subject: Subject
    folders: Mapping[str, Path]

    def outcome(self, items: Items, own: Sequence[str]) -> Outcome:
        """Scores with the budget of the arm's own stages; the language model, now measured, is deleted."""
        lines = [line for stage in own for line in read_lines(self.folders[stage] / "timings.jsonl")]
        outcome = Outcome(items=items, steps=len(lines), samples=sum(line["samples"] for line in lines))
        shutil.rmtree(self.folders["language"])
        return outcome


def headline(begin: Begin, recipe: Any, work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims; see `Bench` for `begin` and `recipe`."""
    return Bench(begin, recipe, budget, work or WORK / "vl-gpt").study()
