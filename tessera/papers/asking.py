"""What studies of language models with eyes share: questions about drawn scenes, and models that learn to answer them.

Every model is the eyes of mini/clip, which stay as they are, a new connector and mini/lm. What the eyes say of a
picture is computed once for all trainings of a study; a reducer acts on it as it does within the model.

Legend: M pictures, N tokens a picture, d width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.data.conversation import ConversationBuilder
from tessera.data.loader import Loader
from tessera.data.mixture import Mixture
from tessera.data.packing import Batch, Packer
from tessera.data.sample import Image, Sample, Text, question
from tessera.data.source import Source, Split
from tessera.data.worlds.scenes.questions import Kind, ask
from tessera.data.worlds.scenes.world import ScenesSource, ScenesWorld
from tessera.evaluate.vqa import TOGETHER
from tessera.files import sha256, short_hash
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.papers.lvlm_training import MINI, Parts, pixels_of
from tessera.study.training import trained
from tessera.train.engine import Stage, Trainer
from tessera.train.features import FeatureStore
from tessera.train.optim import Optimiser
from tessera.train.select import choose_precision
from tessera.zoo.parts import locate


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every training gets: packed rows of questions, a question's pictures and words included.

    Args:
        counts: chances of 1, 2, ... objects in a picture.
    """

    steps: int
    rows: int = 8
    row_length: int = 256
    lr: float = 1e-3
    train_pictures: int
    heldout_pictures: int
    counts: tuple[float, ...] = (0.5, 0.5)


class Asked(ScenesSource):
    """Questions of `kinds` about the pictures of a scenes world, each in the words of the world's own questions.

    One of `kinds` at least is to be one that every scene has.
    """

    def __init__(self, world: ScenesWorld, split: Split, kinds: tuple[Kind, ...]) -> None:
        super().__init__(world, "questions", split)
        self.name, self.kinds = f"{self.name}, {' and '.join(kinds)}", kinds

    def __getitem__(self, index: int, /) -> Sample:
        scene, image = self.shown(index)
        rng = self.world.rng("questions", self.split, index)
        found = (ask(scene, rng, self.kinds[place]) for place in rng.permutation(len(self.kinds)))
        asked = next(one for one in found if one is not None)
        return question(image, asked.text, asked.answer, id=f"{self.name}/{index}", meta={"type": asked.kind})

    def fingerprint(self) -> str:
        """That of the world's questions, and the kinds."""
        return f"{super().fingerprint()}-{'-'.join(self.kinds)}"


@dataclass
class AskingBench:
    """Models that learn to answer, and their answers; a study adds arms.

    Args:
        work: the folder of the study.
    """

    budget: Budget
    work: Path

    @cached_property
    def world(self) -> ScenesWorld:
        """Scenes to learn from and to be judged on."""
        budget = self.budget
        return ScenesWorld(
            train_pictures=budget.train_pictures, heldout_pictures=budget.heldout_pictures, counts=budget.counts,
            captions={"canonical": 1.0},
        )  # fmt: skip

    @cached_property
    def parts(self) -> Parts:
        """Eyes and language model."""
        return Parts.of("mini", {})

    @property
    def tokenizer(self) -> Any:
        """That of the language model."""
        return self.parts.tokenizer

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "world": self.world.fingerprint(),
            "parts": {name: sha256(Path(locate(name)) / "model.safetensors") for name in MINI.values()},
            "budget": asdict(self.budget) | {"counts": list(self.budget.counts)},
            "precision": choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        }

    @cached_property
    def eyes(self) -> LVLMForConditionalGeneration:
        """A model of which only the encoder is used."""
        return self.parts.model().eval()

    @cached_property
    def store(self) -> FeatureStore:
        """Whole grids of pictures."""
        return FeatureStore(lambda images: self.seen(images)[0])

    @torch.no_grad()
    def seen(self, images: Sequence[Image]) -> tuple[Tensor, tuple[int, int]]:
        """The encoder's tokens of pictures, [M, h * w, C], and their grid (h, w)."""
        return self.eyes.visual_features(self.pixels(images))

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Pixels [M, 3, S, S]."""
        decode = pixels_of(self.eyes)
        return torch.from_numpy(np.stack([decode.one(image.pil()) for image in images]))

    def embeds(self, model: Any, images: Sequence[Image]) -> Tensor:
        """What the language model of `model` sees of pictures, [M, N, d]."""
        seen, size = self.store(images).to(model.device), pixels_of(self.eyes).size
        grid = self.eyes.vision.grid_of(size, size)
        if model.slot is not None:
            seen, grid = model.slot(seen, grid)
        return model.connector(seen, grid)

    def builder(self, model: LVLMForConditionalGeneration) -> ConversationBuilder:
        """Questions as the language model reads them."""
        return self.parts.builder(model.num_image_tokens(), self.budget.row_length)

    def stage(self, model: LVLMForConditionalGeneration, source: Source | Mixture, seed: int) -> Stage:
        """Connector and language model learn the answers of a source or mixture."""
        budget = self.budget
        packer = Packer(self.builder(model), budget.rows, budget.row_length, pad_id=self.parts.pad_id)

        def objective(tuned: Any, batch: Batch) -> dict[str, Any]:
            output = tuned(
                batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, num_text=1,
                image_embeds=self.embeds(tuned, batch.images),
            )  # fmt: skip
            return {"words": (output.text.total, output.text.number)}

        return Stage(
            name="questions", model=model, objective=objective, steps=budget.steps,
            loader=Loader(source, packer, seed=seed), trainable=("connector.*", "language_model.*"),
            optimiser=Optimiser(kind="muon", lr=budget.lr),
        )  # fmt: skip

    def learn(
        self, make: Callable[[], LVLMForConditionalGeneration], source: Source | Mixture, seed: int, key: Any
    ) -> tuple[LVLMForConditionalGeneration, int, int]:
        """Train a model; a stopped training of the same `key` and seed is found again.

        Args:
            make: the model; it is called with PyTorch's generator seeded.
            key: what sets this training apart within the study, as JSON.

        Returns:
            The model in evaluation mode, the steps taken and the samples seen.
        """
        folder = self.work / "training" / f"{short_hash([key, self.config])}-seed-{seed}"

        def stages() -> Iterator[Stage]:
            yield self.stage(make(), source, seed)

        trainer = Trainer(folder, config={"key": key}, seed=seed, resume=True)
        with trained(trainer, stages(), self.budget.steps) as run:
            return run.model.eval(), run.steps, run.samples

    def prompts(
        self, model: LVLMForConditionalGeneration, samples: Sequence[Sample]
    ) -> Iterator[tuple[dict[str, Any], list[Image]]]:
        """Questions as `generate` takes them, some together: ids and mask, padded on the left, and their pictures."""
        builder, pad = self.builder(model), self.parts.pad_id
        for start in range(0, len(samples), TOGETHER):
            prompts = [builder.prompt(sample.segments[:-1]) for sample in samples[start : start + TOGETHER]]
            length = max(map(len, prompts))
            ids = torch.full((len(prompts), length), pad)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(prompts):  # the words end where the answer is to begin
                ids[row, length - len(prompt) :] = torch.from_numpy(prompt.input_ids)
                mask[row, length - len(prompt) :] = 1
            given = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            yield given, [image for prompt in prompts for image in prompt.images]

    def said(self, ids: Tensor) -> list[str]:
        """The words of answers."""
        return [str(text) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @property
    def ending(self) -> dict[str, Any]:
        """Options of `generate`: what ends an answer, and what fills up behind it."""
        return {"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.parts.pad_id}


def truth(sample: Sample) -> str:
    """The answer that a question's sample ends with."""
    answer = sample.segments[-1]
    assert isinstance(answer, Text)
    return answer.text
