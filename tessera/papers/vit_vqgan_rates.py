"""What rate each kind of tokenizer learns best at, on training pictures that nothing learns from: `--study rates`.

The study of the claims takes its rates from here, so that none of its held-out pictures had a say in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tessera.data.few import Only
from tessera.data.source import Source, Split
from tessera.errors import UserError
from tessera.evaluate.codebook import restored
from tessera.papers.pictures import Shapes
from tessera.papers.vit_vqgan_study import (
    BUDGET,
    ERROR,
    PIXELS,
    RATES,
    RESTART,
    SLUG,
    Bench,
    Budget,
    codebook_stage,
    pictures,
)
from tessera.study.design import Arm, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.training import trained
from tessera.train.stage import Stage

TRIED = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # the first is the paper's
SEEDS_FROM = 100  # the claims are judged with seeds from 0
ARMS = {f"{kind}, {lr:g}": (kind, lr) for kind in RATES for lr in TRIED}
NOTES = (
    "Arms learn from the training pictures of the study of the claims but its last ones, on which they are judged; so"
    " many are kept back as that study holds out.",
    f"Seeds are counted from {SEEDS_FROM}. All codebooks restart codes that no vector of {RESTART} batches chose. Each"
    " kind has the same rate without restarts, and on emoji.",
)


class KeptBack(Shapes):
    """The training pictures of drawn shapes alone: its last ones, as many as are held out, are judged."""

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one split."""
        whole = super().source(task)
        places = range(len(whole))
        kept = self.world.pictures["heldout"]
        return Only(whole, places[:-kept] if split == "train" else places[-kept:])


class Rates(Bench):
    """Each kind of tokenizer at each rate."""

    @property
    def shared(self) -> dict[str, Any]:
        """What this study adds to `config`."""
        return {**super().shared, "seeds from": SEEDS_FROM}

    def settings(self, arm: str) -> dict[str, Any]:
        """What sets an arm apart, as JSON, with its size."""
        kind, lr = ARMS[arm]
        return {**super().settings(kind), "lr": lr}

    def outcome(self, arm: str, seed: int) -> Outcome:
        """A codebook, judged by what comes back of pictures that it did not learn from."""
        budget, (kind, lr), seed = self.budget, ARMS[arm], SEEDS_FROM + seed

        def stages() -> Iterator[Stage]:
            yield codebook_stage(self.tokenizer_config(kind), self.train, budget, lr, seed)

        with trained(self.trainer(arm, seed), stages(), budget.steps) as ran:
            kept = pictures(self.heldout, len(self.heldout))
            errors = restored(ran.model.tokenizer.eval(), kept, PIXELS).errors
            return Outcome(items={ERROR: errors.tolist()}, steps=ran.steps, samples=ran.samples)

    def study(self) -> Study:
        """All kinds at all rates."""
        arms = [Arm(name=name, run=partial(self.outcome, name), config=self.settings(name)) for name in ARMS]
        return Study(
            slug=self.slug, title=f"rates at which tokenizers are compared ({self.world.name})", arms=arms,
            claims=(), config=self.config, notes=NOTES, tuning="this is the tuning",
        )  # fmt: skip


def rates(work: Path, budget: Budget = BUDGET) -> Study:
    """The rates of a budget, on drawn shapes."""
    return Rates(work.name, KeptBack(budget.train_pictures, budget.heldout_pictures), budget, work).study()


def further(*, data: Path | None, model: Path | None) -> Study:
    """`tessera reproduce vit-vqgan --study rates`."""
    if data is not None or model is not None:
        raise UserError("the study rates draws its pictures and trains its own models; leave out --data and --model")
    return rates(WORK / f"{SLUG}-rates")
