"""The study of PRIOR: visual words of captions that are mostly boilerplate, learned with and without its weights.

All arms are the same frozen image encoder (mini/clip), the same new connector and the same language model (mini/lm),
which learn the same captions of drawn objects in the same order, for as many steps:

    ntp             every word counts the same
    prior           each word counts by one minus its blind probability
    shuffled        the same weights, each at a random word of its caption: the control
    ntp, bare       and
    prior, bare     the same with captions that have no boilerplate

A caption is one of four openings, the object ("a small striped red star top left") and one of four endings, none of
which depends on the picture. Two text-only references a seed read half of the captions once, and score the other half.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tessera.data.blind import BlindBuilder, ScoredPacker, Scores
from tessera.data.few import First
from tessera.data.loader import Loader
from tessera.data.packing import Batch, Packer, collate_rows
from tessera.data.sample import Sample, Text
from tessera.data.tasks import Mapped, pick
from tessera.data.worlds.scenes.graph import COLOURS, PLACES, SHAPES, SIZES, TEXTURES
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.files import short_hash, write_json
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.objectives.importance import Importance
from tessera.objectives.routing import route
from tessera.papers.lvlm_training import Parts, pixels_of
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.sharing import prepared
from tessera.study.training import trained
from tessera.train.blind import Captions, Reference, reference_stages, score
from tessera.train.engine import Callback, Event, Stage, Trainer
from tessera.train.lvlm import NextWord, Prioritised, count_words
from tessera.train.optim import Optimiser
from tessera.train.select import choose_precision
from tessera.zoo.parts import card

SLUG = "prior"
OPENINGS = (
    "this is one of many pictures on our page and it shows",
    "a new picture from the web, in which you can see",
    "thank you for looking at this picture, here we have",
    "picture of the day:",
)
ENDINGS = (
    ". all pictures on this page are free to use",
    ". please ask before you use it on another page",
    ". if you like this picture, tell us what you see in it",
    ". there are many more pictures like this one on our page",
)
VISUAL = sorted({word for name in (*COLOURS, *SHAPES, *SIZES, *TEXTURES, *PLACES) for word in name.split()})
FINAL, EARLY = "visual words right", "visual words right, early"
BLIND = "blind probability of visual words less that of filler"
FILLER = "filler, nats a word"
CONNECTOR, LAYERS = "pixel-shuffle", [1, -1]  # 16 tokens a picture; see tessera.connect, LVLMConfig
ARMS: dict[str, dict[str, Any]] = {
    "ntp": {"alpha": 0.0, "shuffled": False, "filler": True},
    "prior": {"alpha": 1.0, "shuffled": False, "filler": True},
    "shuffled": {"alpha": 1.0, "shuffled": True, "filler": True},
    "ntp, bare": {"alpha": 0.0, "shuffled": False, "filler": False},
    "prior, bare": {"alpha": 1.0, "shuffled": False, "filler": False},
}
PUBLISHED = "+19 % relative, mean of several benchmarks, with an image encoder (abstract)"
CLAIMS = (
    Claim(
        name="prior beats next-token prediction", metric=FINAL, arm="prior", against="ntp", expect="higher",
        published=PUBLISHED,
    ),
    Claim(
        name="prior is ahead early in training", metric=EARLY, arm="prior", against="ntp", expect="higher",
        published="above at all ten checkpoints of the curve, from the first one on (figure)",
    ),
    Claim(
        name="prior beats shuffled weights", metric=FINAL, arm="prior", against="shuffled", expect="higher",
        published="no such control was at hand",
    ),
    Claim(
        name="shuffled weights give no gain", metric=FINAL, arm="shuffled", against="ntp", expect="not higher",
        margin=0.02, published="no such control was at hand",
    ),
    Claim(
        name="visual words are harder to guess blind", metric=BLIND, arm="prior", against=0.0, expect="lower",
        published="no figure; the premise of the method (abstract)",
    ),
    Claim(
        name="without boilerplate there is little to gain", metric=FINAL, arm="prior, bare", against="ntp, bare",
        expect="not higher", margin=0.02, published="no figure; weights that are all alike are next-token prediction",
    ),
)  # fmt: skip
NOTES = (
    "Visual words are those that name colour, shape, size, texture and place; right is the likeliest word of all, with"
    " the caption's words before it given, on pictures of combinations that no arm has learned.",
    "Early is after a third of the steps, at a rate that is still high.",
    "Filler is every other word, its end mark included, by the loss without weights.",
    "Captions are made by rule; of the two settings of the paper this is the one with an image encoder.",
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets: packed rows of captions, a caption's picture and words included. Captions without
    boilerplate are shorter, so that half as many rows hold them."""

    steps: int = 60
    rows: int = 4
    row_length: int = 256
    lr: float = 1e-3
    train_pictures: int = 4000
    heldout_pictures: int = 400
    reference_steps: int = 40


BUDGET = Budget()


def with_filler(sample: Sample, rng: np.random.Generator) -> Sample:
    """Its canonical caption between an opening and an ending that say nothing of the picture."""
    words = (pick(OPENINGS, rng), str(sample.meta["canonical"]) + pick(ENDINGS, rng))
    return Sample((*sample.images, Text(" ".join(words))), id=sample.id)


def bare(sample: Sample, rng: np.random.Generator) -> Sample:
    """Its canonical caption alone."""
    return Sample((*sample.images, Text(str(sample.meta["canonical"]))), id=sample.id)


@dataclass
class Bench:
    """The arms.

    Args:
        work: the folder of the study.
    """

    budget: Budget
    work: Path
    _scores: dict[tuple[bool, int], Scores] = field(default_factory=dict, init=False)

    @cached_property
    def world(self) -> ScenesWorld:
        """One object a picture, to learn from and to be judged on."""
        budget = self.budget
        return ScenesWorld(
            train_pictures=budget.train_pictures, heldout_pictures=budget.heldout_pictures, counts=(1.0,)
        )

    @cached_property
    def parts(self) -> Parts:
        """Those of the zoo."""
        return Parts.of("mini", {})

    @cached_property
    def visual(self) -> torch.Tensor:
        """Ids of the visual words, each of which is one token of the mini parts."""
        words = self.parts.tokenizer([" " + word for word in VISUAL], add_special_tokens=False).input_ids
        assert all(len(word) == 1 for word in words)
        return torch.tensor(words)[:, 0]

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "world": self.world.fingerprint(),
            "parts": {name: card(name)["files"] for name in (self.parts.vision, self.parts.language)},
            "connector": CONNECTOR,
            "layers": LAYERS,
            "filler": [list(OPENINGS), list(ENDINGS)],
            "budget": asdict(self.budget),
            "precision": choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        }

    def captions(self, filler: bool) -> Captions:
        """Training captions, which read the same in every epoch."""
        source = Mapped(self.world.source("pairs"), with_filler if filler else bare)
        part = First(source, len(source))
        return Captions([(part, 1.0)], BlindBuilder(self.parts.builder(1, self.budget.row_length)))

    def model(self) -> LVLMForConditionalGeneration:
        """A new connector between trained parts; PyTorch's generator makes its weights."""
        return self.parts.model(connector=CONNECTOR, vision_feature_layer=LAYERS)

    def rows(self, filler: bool) -> int:
        """Packed rows of one step."""
        return self.budget.rows if filler else max(1, self.budget.rows // 2)

    def scores(self, filler: bool, seed: int) -> Scores:
        """What the references of a seed make of its captions, from its file where an earlier arm left it."""
        key = short_hash([filler, self.config])
        file = self.work / "scores" / f"{key}-seed-{seed}.safetensors"

        def write() -> None:
            captions, budget = self.captions(filler), self.budget
            references: list[PreTrainedModel] = []

            wanted = Reference(
                steps=budget.reference_steps, rows=self.rows(filler), rank=0,
                optimiser=Optimiser(kind="muon", lr=budget.lr),
            )  # fmt: skip
            stages = reference_stages(
                captions, self.parts.language_model, wanted, budget.row_length, references, seed=seed
            )
            folder = self.work / "training" / f"reference-{key}-seed-{seed}"
            trainer = Trainer(folder, config={"key": key}, seed=seed, resume=True)
            with trained(trainer, stages, 2 * budget.reference_steps):
                score(captions, references, self.rows(filler), budget.row_length).save(file)

        return Scores.load(prepared(self.work, file, write))

    def stage(self, model: LVLMForConditionalGeneration, arm: str, seed: int) -> Stage:
        """Connector and language model learn the captions."""
        wanted, budget = ARMS[arm], self.budget
        scores = self.scores(wanted["filler"], seed)
        if wanted["shuffled"]:
            scores = scores.shuffled(seed)
        packer = Packer(
            self.parts.builder(model.num_image_tokens(), budget.row_length), self.rows(wanted["filler"]),
            budget.row_length, pad_id=self.parts.pad_id,
        )  # fmt: skip
        return Stage(
            name="pretrain", model=model, steps=budget.steps, counts=count_words,
            objective=Prioritised(model, pixels_of(model), Importance(alpha=wanted["alpha"])),
            loader=Loader(self.captions(wanted["filler"]).mixture, ScoredPacker(packer, scores), seed=seed),
            trainable=("connector.*", "language_model.*"), optimiser=Optimiser(kind="muon", lr=budget.lr),
        )  # fmt: skip

    @cached_property
    def batches(self) -> dict[bool, list[Batch]]:
        """Held-out captions with and without filler, one a row in the order of the pictures, undecoded."""
        length, found = self.budget.row_length, {}
        positions = self.model().num_image_tokens()
        for filler, task in ((True, with_filler), (False, bare)):
            source = Mapped(self.world.source("pairs", "heldout"), task)
            builder = self.parts.builder(positions, length)
            built = [builder.build(source[place]) for place in range(len(source))]
            longest = max(len(one) for one in built)
            found[filler] = [
                collate_rows([[one] for one in built[start : start + 50]], longest, self.parts.pad_id)
                for start in range(0, len(built), 50)
            ]
        return found

    @torch.no_grad()
    def judged(self, model: LVLMForConditionalGeneration, filler: bool) -> tuple[list[float], float]:
        """The share of visual words that are right of each held-out picture, and the mean loss of all other words."""
        eyes, shares, lost = NextWord(model, pixels_of(model)), [], []
        model.eval()
        for batch in self.batches[filler]:
            batch = batch.to(model.device)
            output = eyes.read(model, batch)
            assert output.logits is not None and output.words is not None
            steps = route(batch.labels, None, batch.segment_ids).text
            row = steps.nonzero()[:, 0]
            seen = torch.isin(output.words, self.visual.to(model.device))
            right = (output.logits.argmax(-1) == output.words)[seen].double()
            sums = torch.zeros(len(steps), 2, dtype=torch.float64, device=model.device)
            sums.index_add_(0, row[seen], torch.stack([right, torch.ones_like(right)], 1))
            shares += (sums[:, 0] / sums[:, 1]).tolist()
            chances = output.logits.float().log_softmax(-1).gather(-1, output.words[:, None])[:, 0]
            lost.append(-chances[~seen].double())
        return shares, float(torch.cat(lost).mean())

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Trained, judged after a third of the steps and at the end."""
        wanted, budget = ARMS[arm], self.budget
        key = short_hash([arm, self.config])
        folder = self.work / "training" / f"{key}-seed-{seed}"
        model: list[LVLMForConditionalGeneration] = []

        def stages() -> Iterator[Stage]:
            model.append(self.model())
            yield self.stage(model[0], arm, seed)

        def early(event: Event) -> None:
            if event.step == budget.steps // 3:  # kept in a file, for a run that is stopped and goes on
                write_json(folder / "early.json", self.judged(model[0], wanted["filler"])[0])

        looks = [Callback(max(1, budget.steps // 3), early)]
        trainer = Trainer(folder, config={"key": key}, seed=seed, resume=True, callbacks=looks)
        with trained(trainer, stages(), budget.steps) as run:
            first = json.loads((folder / "early.json").read_text(encoding="utf-8"))
            shares, filler = self.judged(run.model, wanted["filler"])
        metrics = {FILLER: filler, BLIND: self.gap(wanted["filler"], seed)}
        return Outcome(metrics=metrics, items={FINAL: shares, EARLY: first}, steps=run.steps, samples=run.samples)

    def gap(self, filler: bool, seed: int) -> float:
        """Mean blind probability of the visual words less that of all others."""
        scores, groups = self.scores(filler, seed), {True: [], False: []}  # type: ignore[var-annotated]
        visual = set(self.visual.tolist())
        for _, _, tokens in self.captions(filler).sequences:
            ids = tokens.input_ids[tokens.labels >= 0].tolist()
            for word, blind in zip(ids, scores.of(tokens), strict=True):
                groups[word in visual].append(float(blind))
        return float(np.mean(groups[True]) - np.mean(groups[False]))

    def study(self) -> Study:
        """All arms and claims."""
        arms = [Arm(name=name, run=partial(self.outcome, name), config=wanted) for name, wanted in ARMS.items()]
        return Study(
            slug=SLUG, title="words that cannot be guessed blind count more (drawn objects)", arms=arms, claims=CLAIMS,
            config=self.config, notes=NOTES,
            tuning="no arm was tuned: the steps were set by a curve of next-token prediction alone, with another seed,"
            " rates and margins before the first run",
        )  # fmt: skip


def headline(work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn objects."""
    return Bench(budget, work or WORK / SLUG).study()
