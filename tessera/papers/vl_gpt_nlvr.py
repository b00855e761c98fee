"""A study of VL-GPT on real language: NLVR (Suhr et al. 2017), sentences that people wrote about three drawn boxes.

    tessera reproduce vl-gpt --study nlvr --data FOLDER --model runs/demo/model

A trained model is tuned to say whether a sentence is true of its picture, once with the pictures and once with blank
ones in their place, and is held against the majority answer. NLVR's dev set is the training data here and its test set
is held out, because its training sentences are not asked for: this is not the published protocol.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.assistant import Assistant, load
from tessera.data.loader import Loader
from tessera.data.packing import Batch, Packer, collate_rows
from tessera.data.readers.nlvr import Form, Statements
from tessera.data.sample import Sample, Text
from tessera.data.sequence import IGNORED
from tessera.errors import CheckpointError, UserError
from tessera.evaluate.intervals import exact_binomial
from tessera.files import sha256, short_hash
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.training import trained
from tessera.train.engine import Stage, Trainer
from tessera.train.features import FeatureStore
from tessera.train.optim import Optimiser
from tessera.train.select import choose_precision

SLUG = "vl-gpt-nlvr"
MODEL = Path("runs") / "demo" / "model"
ARMS = {"pictures": True, "blank pictures": False}  # whether the model is shown them
TOGETHER = 64  # statements that are judged at once
NOTES = (
    "NLVR's dev set is training data here and its test set is held out; the published protocol trains on other"
    " sentences, so that these figures do not compare with published ones.",
    "Each box is shown as a picture of its own: the model's pictures are square, and one cut out of the middle of three"
    " boxes would lose two of them.",
    "Of the six arrangements of a test example one is judged, so that items are independent of each other; in training"
    " all six are met.",
    '"accuracy_by_seed" gives the exact binomial interval of each training, over test examples alone.',
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What each arm gets: about one pass over the dev set, and ten minutes for all arms of three seeds on two cores.

    `examples` keeps the study to the first so many examples of each set; None is all of them.
    """

    steps: int = 180
    rows: int = 8
    row_length: int = 256
    lr: float = 5e-4
    examples: int | None = None


BUDGET = Budget()


@dataclass
class Bench:
    """The model to tune, the data, and what the arms share.

    Args:
        data: folder of nlvr-dev.tar and nlvr-test.tar.
        model: a folder that `tessera train vl-gpt` wrote.
        work: the folder of the study.
    """

    data: Path
    model: Path
    budget: Budget
    work: Path

    @cached_property
    def assistant(self) -> Assistant:
        """The model before tuning."""
        return load(self.model)

    @cached_property
    def embeds(self) -> FeatureStore:
        """Visual embeddings of pictures: the image tokenizer stays as it is, so that all trainings share them."""
        return FeatureStore(lambda images: self.assistant.encode([image.pil() for image in images]))

    def statements(self, part: str, arm: str) -> Statements:
        """Part "dev" or "test" as an arm meets it."""
        path = self.data / f"nlvr-{part}.tar"
        form: Form = "boxes" if ARMS[arm] else "blank"
        return Statements(path, form=form, once=part == "test", examples=self.budget.examples)

    @cached_property
    def labels(self) -> list[bool]:
        """Which test statements are true."""
        test = self.statements("test", "pictures")
        return [bool(test[index].meta["label"]) for index in range(len(test))]

    def study(self) -> Study:
        """Both arms, the two claims."""
        true = sum(self.labels) / len(self.labels)
        arms = [
            Arm(name=name, run=lambda seed, name=name: self.tune(name, seed), config={"pictures": seen})  # type: ignore[misc]
            for name, seen in ARMS.items()
        ]
        claims = [
            Claim(
                name="better than the majority answer", metric="accuracy", arm="pictures",
                against=max(true, 1 - true), expect="higher", published="VL-GPT was not measured on NLVR",
            ),
            Claim(
                name="the pictures tell it", metric="accuracy", arm="pictures", against="blank pictures",
                expect="higher", published="VL-GPT was not measured on NLVR",
            ),
        ]  # fmt: skip
        config = {
            "budget": asdict(self.budget),
            "dev": self.statements("dev", "pictures").fingerprint(),
            "test": self.statements("test", "pictures").fingerprint(),
            "model": sha256(self.model / "model.safetensors"),
            "precision": choose_precision("auto", self.assistant.model.device),
        }
        return Study(
            slug=SLUG, title="true or false, of sentences that people wrote (NLVR)", arms=arms, claims=claims,
            config=config, tuning="no arm was tuned: steps and rate were set before the first run", notes=NOTES,
            further=self.by_seed,
        )  # fmt: skip

    def by_seed(self, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The accuracy of each training with its exact binomial interval."""
        return {"accuracy_by_seed": {name: _exact(arm, len(self.labels)) for name, arm in arms.items()}}

    def tune(self, arm: str, seed: int) -> Outcome:
        """A copy of the model, tuned on dev and judged on test."""
        model = copy.deepcopy(self.assistant.model)
        folder = self.work / "training" / f"{short_hash([arm, asdict(self.budget)])}-seed-{seed}"
        trainer = Trainer(folder, config={"arm": arm, **asdict(self.budget)}, seed=seed, resume=True)
        with trained(trainer, [self.stage(model, arm, seed)], self.budget.steps) as tuned:
            said = self.answers(model, self.statements("test", arm))
        right = [float(one == label) for one, label in zip(said, self.labels, strict=True)]
        return Outcome(
            metrics={"said true": float(np.mean(said))}, items={"accuracy": right}, steps=tuned.steps,
            samples=tuned.samples,
        )  # fmt: skip

    def stage(self, model: VLGPTForConditionalGeneration, arm: str, seed: int) -> Stage:
        """Instruction tuning of the language model on the dev statements; only the answers are learned."""
        budget = self.budget
        packer = Packer(self.assistant.builder, budget.rows, budget.row_length, pad_id=self._pad)
        loader = Loader(self.statements("dev", arm), packer, seed=seed)

        def objective(tuned: Any, batch: Batch) -> dict[str, Any]:
            output = tuned(
                batch.input_ids, labels=batch.labels, position_ids=batch.position_ids, num_text=1, num_visual=1,
                segment_ids=batch.segment_ids, image_embeds=self.embeds(batch.images).to(batch.input_ids.device),
            )  # fmt: skip
            return {"words": (output.text.total, output.text.number)}

        return Stage(
            name="nlvr", model=model, objective=objective, loader=loader, steps=budget.steps,
            trainable=("language_model.*",), optimiser=Optimiser(kind="muon", lr=budget.lr),
        )  # fmt: skip

    @torch.no_grad()
    def answers(self, model: VLGPTForConditionalGeneration, statements: Statements) -> list[bool]:
        """Whether the model finds "true" likelier than "false" as the answer to each statement."""
        builder, found = self.assistant.builder, []
        yes, no = (self._first_token(statements[0], word) for word in ("true", "false"))
        assert yes != no
        model.eval()
        for start in range(0, len(statements), TOGETHER):
            chosen = (statements[index] for index in range(start, min(start + TOGETHER, len(statements))))
            prompts = [[builder.prompt(sample.segments[:-1])] for sample in chosen]
            batch = collate_rows(prompts, max(len(row[0]) for row in prompts), self._pad).to(model.device)
            logits = model(
                batch.input_ids, position_ids=batch.position_ids, segment_ids=batch.segment_ids,
                image_embeds=self.embeds(batch.images).to(model.device),
            ).logits  # fmt: skip
            ends = (batch.segment_ids > 0).sum(dim=1) - 1
            last = logits[torch.arange(len(ends), device=ends.device), ends]
            found += (last[:, yes] > last[:, no]).tolist()
        return found

    def _first_token(self, sample: Sample, answer: str) -> int:
        built = self.assistant.builder.build(replace(sample, segments=(*sample.segments[:-1], _said(answer))))
        return int(built.labels[built.labels != IGNORED][0])

    @property
    def _pad(self) -> int:
        return self.assistant.tokenizer.pad_token_id or 0


def _said(answer: str) -> Text:
    return Text(answer, role="assistant")


def nlvr(*, data: Path | None, model: Path | None, work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of a trained model that is tuned on `data`.

    Args:
        data: folder of nlvr-dev.tar and nlvr-test.tar.
        model: what is tuned, by default runs/demo/model.
        work: where trainings are kept, by default runs/studies/vl-gpt-nlvr.

    Raises:
        UserError: no data were given.
        DataError: a file of the data is missing or holds no statements.
        CheckpointError: there is no model.
    """
    if data is None:
        raise UserError("the study nlvr reads nlvr-dev.tar and nlvr-test.tar; name their folder with --data FOLDER")
    model = model or MODEL
    if not (model / "model.safetensors").is_file():
        raise CheckpointError(
            f"{model} holds no trained model for the study nlvr to tune; train one with `tessera train vl-gpt --out"
            " runs/demo`, or name its folder with --model FOLDER"
        )
    return Bench(data, model, budget, work or WORK / SLUG).study()


def _exact(arm: Mapping[str, Any], statements: int) -> Sequence[dict[str, Any]]:
    shares = arm["metrics"]["accuracy"]["by_seed"]
    return [exact_binomial(round(share * statements), statements).to_json() for share in shares]
