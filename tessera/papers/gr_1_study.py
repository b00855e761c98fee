"""The study of GR-1: a robot that learns from few demonstrations, whether or not it foresees pictures, and whether or
not it foresaw clips before.

All arms are one small policy over the table's static camera and the features of `mini/clip`. They take as many steps
over as many windows, and learn from the same 100 demonstrations, a third of what `tessera train gr-1` takes:

    actions      learns the expert's actions alone
    foreseeing   learns actions and the picture three steps ahead
    pre-trained  the first half of its steps goes to the next picture of clips of the table's other tasks, without
                 states and actions; then as foreseeing

The robot lifts what is named, one of three things. The slider was left out before the first run: the goal alone says
where its knob is, so that a policy without eyes can reach it, and its tries would not tell the arms apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tessera.actor import Actor
from tessera.data.episodes import Episode
from tessera.data.windows import Windows
from tessera.evaluate.imitation import action_errors
from tessera.evaluate.rollout import roll_together
from tessera.files import short_hash
from tessera.models.policy import GR1Policy
from tessera.models.policy.senses import Senses
from tessera.papers.gr_1_training import (
    MINI,
    SMALL,
    TEXT,
    VISION,
    Learning,
    Material,
    Recipe,
    Weights,
    spreads,
    table_episodes,
    units,
)
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.training import trained
from tessera.train.engine import Trainer
from tessera.train.features import FeatureStore
from tessera.train.optim import Optimiser
from tessera.train.policies import batches_of
from tessera.train.select import choose_precision
from tessera.train.stage import Stage
from tessera.zoo.senses import read_senses

SLUG = "gr-1"
TASKS = ("lift",)  # the robot's; clips are of the others
CAMERA = "static"
FIRST_TRY = 1_000_000  # seed of the first try; the others have the next
SUCCESS, ERROR = "success", "error of actions"
ARMS: dict[str, dict[str, Any]] = {
    "actions": {"clips": False, "pictures": 0.0},
    "foreseeing": {"clips": False, "pictures": 1.0},
    "pre-trained": {"clips": True, "pictures": 1.0},
}
ABLATION = "no video prediction < video prediction < pre-trained (summary of the ablation); no figure was at hand"
CLAIMS = (
    Claim(
        name="foreseeing pictures brings held-out actions closer to the expert's", metric=ERROR, arm="foreseeing",
        against="actions", expect="lower", published=ABLATION,
    ),
    Claim(
        name="foreseeing pictures raises success", metric=SUCCESS, arm="foreseeing", against="actions",
        expect="higher", published=ABLATION,
    ),
    Claim(
        name="clips of other tasks bring held-out actions closer to the expert's", metric=ERROR, arm="pre-trained",
        against="foreseeing", expect="lower", published=ABLATION,
    ),
    Claim(
        name="clips of other tasks raise success", metric=SUCCESS, arm="pre-trained", against="foreseeing",
        expect="higher", published="CALVIN's first task from 88.9 % to 94.9 %, the method against the best before it",
    ),
)  # fmt: skip
NOTES = (
    f"{SUCCESS}: of the same 200 tries in all arms and seeds; lifting one of the three things at hazard is a third.",
    f"{ERROR}: mean distance from the expert's dx, dy, dz on held-out demonstrations, an item each.",
    "Demonstrations are drawn anew with each seed, the same for all arms; clips are the same for all.",
    "The hand's camera is left out of all arms, to halve what a step costs.",
    "Clips show the nine other tasks; placing and stacking begin by lifting the thing that is named, without actions.",
    "Features of mini/clip hardly say where in the picture they are from, so that in all arms fixed places are added.",
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets; meant for less than an hour of one core for all arms of three seeds.

    Args:
        steps: of an arm; `first` of them go to clips where there are some.
        demonstrations, clips, heldout: episodes.
        tries: in which success is measured, of `limit` steps each.
    """

    steps: int = 3000
    first: int = 1500
    batch: int = 12
    demonstrations: int = 100
    clips: int = 400
    heldout: int = 60
    tries: int = 200
    limit: int = 30
    model: dict[str, Any] = field(default_factory=lambda: SMALL)

    def recipe(self, pictures: float, clips: bool) -> Recipe:
        """How an arm learns."""
        muon = Optimiser(kind="muon", lr=1e-3)
        return Recipe(
            model=self.model, weights=Weights(pictures=pictures),
            pretrain=Learning(steps=self.first, batch=self.batch, ahead=1, optimiser=muon),
            act=Learning(steps=self.steps - self.first * clips, batch=self.batch, ahead=3, optimiser=muon),
        )  # fmt: skip


BUDGET = Budget()


@dataclass
class Bench:
    """The arms over one budget.

    Args:
        work: the folder of the study.
    """

    budget: Budget
    work: Path

    @cached_property
    def senses(self) -> Senses:
        """The frozen encoders."""
        return read_senses(MINI[VISION], MINI[TEXT])

    @cached_property
    def store(self) -> FeatureStore:
        """Features of all pictures, for all arms and seeds."""
        return FeatureStore(self.senses.look)

    def windows(self, name: str, episodes: Sequence[Episode], stride: int = 1) -> Windows:
        """Windows of the static camera."""
        seen = [replace(one, cameras={CAMERA: one.cameras[CAMERA]}) for one in episodes]
        return Windows(name, seen, self.budget.model["window"], stride=stride)

    @cached_property
    def clips(self) -> Windows:
        """Films of other tasks; what is done in them is not read."""
        from tessera.data.worlds.tabletop import TASKS as ALL  # gymnasium is an extra

        others = [task for task in ALL if task not in TASKS]
        return self.windows("clips", table_episodes(others, self.budget.clips))

    @cached_property
    def heldout(self) -> Windows:
        """Demonstrations to be judged on, every step once."""
        episodes = table_episodes(TASKS, self.budget.heldout, "heldout")
        return self.windows("held out", episodes, stride=self.budget.model["window"])

    def material(self, seed: int) -> Material:
        """The episodes of a seed: demonstrations of a world of its own, as clips are of world 0."""
        shown = table_episodes(TASKS, self.budget.demonstrations, seed=1 + seed)
        robot = self.windows("demonstrations", shown)
        return Material(self.clips, robot, self.heldout, (CAMERA,), units(spreads(shown), gripper=True))

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "encoders": MINI, "tasks": list(TASKS), "clips": self.clips.fingerprint(),
            "heldout": self.heldout.fingerprint(), "budget": asdict(self.budget),
            "precision": choose_precision("auto", self.senses.vision.device),
        }  # fmt: skip

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Trained, judged on held-out demonstrations, and let loose."""
        recipe, data = self.budget.recipe(**ARMS[arm]), self.material(seed)

        def stages() -> Iterator[Stage]:
            policy = GR1Policy(recipe.config(self.senses, data))
            if ARMS[arm]["clips"]:
                yield recipe.stage("pretrain", policy, self.senses, self.store, data.clips, seed=seed)
            yield recipe.stage("act", policy, self.senses, self.store, data.robot, seed=seed)

        folder = self.work / "training" / f"{short_hash([arm, ARMS[arm], self.config])}-seed-{seed}"
        trainer = Trainer(folder, config=asdict(recipe), seed=seed, resume=True)
        with trained(trainer, stages(), self.budget.steps) as run:
            policy = run.model.eval()
            lesson = recipe.lesson("act", data.cameras)
            batches = batches_of(self.heldout, self.senses, self.store, lesson, self.budget.batch)
            items = {
                ERROR: action_errors(policy, lesson, batches).tolist(),
                SUCCESS: self.tried(Actor(policy, self.senses)),
            }
            return Outcome(items=items, steps=run.steps, samples=run.samples)

    def tried(self, actor: Actor) -> list[float]:
        """1 where a try reached its goal, else 0; try n is of task n of TASKS, which are taken in turn."""
        from tessera.data.worlds.tabletop import Tabletop

        envs = [Tabletop() for _ in range(self.budget.tries)]
        begun = [
            env.reset(seed=FIRST_TRY + number, options={"task": TASKS[number % len(TASKS)]})
            for number, env in enumerate(envs)
        ]
        window = self.budget.model["window"]
        tried = roll_together(envs, actor.within_each(envs[0]), begun, window=window, steps=self.budget.limit)
        return [float(one.success) for one in tried]

    def study(self) -> Study:
        """All arms and claims."""
        arms = [Arm(name=name, run=partial(self.outcome, name), config=fields) for name, fields in ARMS.items()]
        return Study(
            slug=SLUG, title="foreseeing pictures, and clips of other tasks, before few demonstrations (tabletop)",
            arms=arms, claims=CLAIMS, config=self.config,
            tuning="no arm was tuned: steps and rate are the same for all and were set before the first run, after a"
            " trial of 600 steps and 60 demonstrations of three tasks that was too short to succeed",
            notes=NOTES,
        )  # fmt: skip


def headline(work: Path = WORK / SLUG, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims."""
    return Bench(budget, work).study()
