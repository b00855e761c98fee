"""What GR-1 is trained on and how: the recipe, the episodes, the parts that a user names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from tessera.data.episodes import Episode
from tessera.data.source import Split
from tessera.data.windows import Windows
from tessera.errors import UserError, nearest
from tessera.models.policy import GR1Config, GR1Policy
from tessera.models.policy.learning import Lesson, foreseen
from tessera.models.policy.senses import Senses
from tessera.papers.settings import CONFIG, check_roles
from tessera.train.features import FeatureStore
from tessera.train.optim import Optimiser
from tessera.train.policies import policy_stage, window_loader
from tessera.train.stage import Stage

WORLD, ROBOT = "tabletop", "tessera/Tabletop-v0"  # in LeRobot's format a data set names its robot
VISION, TEXT, POLICY = "vision", "text", "policy"  # roles of --parts
MINI = {VISION: "mini/clip", TEXT: "mini/clip"}
SMALL: dict[str, Any] = {  # a policy that learns on a processor
    "width": 96, "depth": 4, "heads": 4, "window": 6, "latents": 4, "resampler_depth": 1, "resampler_heads": 2,
    "resampler_head_width": 32, "places": True, "decoder_depth": 1, "decoder_heads": 4, "patch_size": 16,
}  # fmt: skip
HOLD_OUT = 10  # of a user's episodes one in so many
LEAST_SPREAD = 1e-3  # of a number that never changes, so that nothing is divided by zero


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How long and how a stage learns; `batch` counts windows of one update, of all processes together. `steps` above 0
    wins over `epochs`."""

    steps: int = 0
    epochs: int = 1
    batch: int
    ahead: int
    optimiser: Optimiser

    def length(self, windows: int) -> int:
        """Steps that the stage takes."""
        return self.steps or self.epochs * -(-windows // self.batch)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Factors on the losses of the arm, the gripper, and each camera's future picture. At `pictures` 0 none is
    foreseen."""

    arm: float = 1.0
    gripper: float = 1.0
    pictures: float = 1.0

    def of(self, cameras: Sequence[str]) -> dict[str, float]:
        """By the name of the loss."""
        return {"arm": self.arm, "gripper": self.gripper, **{foreseen(one): self.pictures for one in cameras}}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Clips first, of which the first camera's future is foreseen; then the robot's episodes.

    Args:
        model: fields of the configuration that differ from the published ones; sizes of states, actions and features
            follow from the data and the encoders.
        tasks: those of the table that the robot learns, with commas between; clips are of the others.
        episodes, clips: how many of the table's are learned from.
    """

    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: GR1Config})
    weights: Weights = Weights()
    tasks: str = "lift, slider left, slider right"
    episodes: int = 300
    clips: int = 300
    pretrain: Learning
    act: Learning

    @property
    def window(self) -> int:
        """Steps of a window."""
        return int(self.model.get("window", GR1Config.window))

    def scaled(self, steps: int | None, pretrained: bool) -> Recipe:
        """`steps` updates in all, shared between both stages in the same proportion; all of them for the second where
        the policy is pre-trained."""
        if steps is None or pretrained:
            return replace(self, act=replace(self.act, steps=steps or self.act.steps))
        share = self.pretrain.steps / (self.pretrain.steps + self.act.steps or 1) or 0.5
        first = max(1, round(steps * share))
        second = max(1, steps - first)
        return replace(self, pretrain=replace(self.pretrain, steps=first), act=replace(self.act, steps=second))

    def config(self, senses: Senses, data: Material) -> GR1Config:
        """Of the policy over these encoders and episodes.

        Raises:
            UserError: a value that the configuration refuses.
        """
        seen, read = senses.widths
        side = senses.pixels.size
        shown: dict[str, Any] = {
            "vision_grid": list(senses.vision.grid_of(side, side)), "vision_width": seen, "text_width": read,
            "image_size": side, "cameras": list(data.cameras), "ahead": self.act.ahead, **data.units,
        }  # fmt: skip
        return GR1Config(**{**self.model, **shown})

    def lesson(self, stage: str, cameras: Sequence[str]) -> Lesson:
        """What "pretrain" or "act" asks; the first reads one camera alone, as published."""
        if stage == "pretrain":
            return Lesson((cameras[0],), self.pretrain.ahead, act=False)
        return Lesson(tuple(cameras), self.act.ahead, foresee=self.weights.pictures > 0)

    def stage(
        self, stage: str, policy: GR1Policy, senses: Senses, store: FeatureStore, windows: Windows, **places: int
    ) -> Stage:
        """The stage "pretrain" or "act" over windows.

        Args:
            store: over `senses.look`.
            places: `seed`, `rank`, `world_size` and `workers` of the loader.
        """
        how: Learning = getattr(self, stage)
        lesson = self.lesson(stage, policy.config.cameras)
        loader = window_loader(windows, senses, store, lesson, how.batch, **places)
        weights = self.weights.of(lesson.cameras) if stage == "act" else {}
        return policy_stage(
            policy, loader, lesson, how.length(len(windows)), name=stage, optimiser=how.optimiser,
            weights={name: value for name, value in weights.items() if value},
        )  # fmt: skip


@dataclass(frozen=True)
class Material:
    """Windows of clips, whose states and actions are not read, and of a robot's episodes, some of them held out.

    Args:
        units: fields of the configuration that tell sizes, means and spreads of states and actions.
    """

    clips: Windows
    robot: Windows
    heldout: Windows
    cameras: tuple[str, ...]
    units: Mapping[str, Any]


def units(rows: Mapping[str, tuple[np.ndarray, np.ndarray]], gripper: bool) -> dict[str, Any]:
    """Fields of the configuration, from mean and spread, float [D] each, of "state" and "action"."""
    found: dict[str, Any] = {"gripper": gripper}
    for name, (mean, spread) in rows.items():
        moving = len(mean) - gripper
        found |= {
            f"{name}_size": len(mean), f"{name}_mean": [float(one) for one in mean[:moving]],
            f"{name}_scale": [max(float(one), LEAST_SPREAD) for one in spread[:moving]],
        }  # fmt: skip
    return found


def table_episodes(tasks: Sequence[str], number: int, split: Split = "train", seed: int = 0) -> list[Episode]:
    """The expert's first `number` episodes of some tasks of the table.

    Args:
        seed: of the world.

    Raises:
        UserError: a task that there is not, or fewer episodes.
    """
    from tessera.data.worlds.tabletop import TASKS  # gymnasium is an extra
    from tessera.data.worlds.tabletop.world import TabletopWorld

    for task in tasks:
        if task not in TASKS:
            raise UserError(f"the table has no task {task!r}{nearest(task, TASKS)}")
    source = TabletopWorld(seed=seed).source("episodes", split)
    found = list(islice(source.episodes(len(source), tasks), number))
    if len(found) < number:
        raise UserError(f"the table has {len(found)} episodes of {', '.join(tasks)}, not {number}; ask for fewer")
    return found


def table(recipe: Recipe) -> Material:
    """The embedded world, shared between clips and robot as the recipe says."""
    from tessera.data.worlds.tabletop import TASKS

    tasks = [one.strip() for one in recipe.tasks.split(",")]
    others = [one for one in TASKS if one not in tasks] or tasks
    robot = table_episodes(tasks, recipe.episodes)
    heldout = table_episodes(tasks, max(1, recipe.episodes // HOLD_OUT), "heldout")
    window = recipe.window
    return Material(
        Windows(f"{WORLD} clips", table_episodes(others, recipe.clips), window), Windows(WORLD, robot, window),
        Windows(f"{WORLD} held out", heldout, window, stride=window), tuple(robot[0].cameras),
        units(spreads(robot), recipe.model.get("gripper", True)),
    )  # fmt: skip


def spreads(episodes: Sequence[Episode]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of all states and of all actions."""
    found = {}
    for name in ("state", "action"):
        values = np.concatenate([getattr(one, name) for one in episodes]).astype(np.float64)
        found[name] = (values.mean(0), values.std(0))
    return found


def folders(recipe: Recipe, data: Sequence[str]) -> Material:
    """LeRobot folders: of clips and of a robot, or one for both. Every tenth episode of the robot is held out.

    Raises:
        UserError: more than two sets, clips without the robot's first camera, or an action outside the limits of the
            table's own robot. Those of others are not known.
        DataError: one cannot be read.
    """
    from tessera.data.lerobot import ACTION, STATE, STATS  # pyarrow and PyAV are an extra
    from tessera.data.readers.lerobot import LeRobotEpisodes

    if len(data) > 2:
        raise UserError(f"--data takes clips and a robot's episodes, not {len(data)} sets")
    clips = LeRobotEpisodes(data[0])
    robot = clips if data[0] == data[-1] else LeRobotEpisodes(data[-1])
    if robot.info.get("robot_type") == ROBOT:
        from tessera.data.worlds.tabletop import Tabletop  # gymnasium too

        robot.check_actions(*Tabletop.action_limits)
    first = next(iter(robot.cameras))
    if first not in clips.cameras:
        raise UserError(
            f"the clips in {data[0]} have no camera {first!r}, the robot's first, whose pictures are foreseen;"
            f" they have {', '.join(clips.cameras)}"
        )
    said = json.loads((robot.path / STATS).read_text(encoding="utf-8"))
    rows = {
        name: (np.asarray(said[key]["mean"]), np.asarray(said[key]["std"]))
        for name, key in (("state", STATE), ("action", ACTION))
    }
    names = robot.features[ACTION].get("names")
    gripper = recipe.model.get("gripper", isinstance(names, list) and names[-1:] == ["gripper"])
    learned = [number for number in range(len(robot)) if number % HOLD_OUT or len(robot) < HOLD_OUT]
    heldout = [number for number in range(len(robot)) if number not in learned]
    return Material(
        Windows(clips.name, clips, recipe.window), Windows(robot.name, robot, recipe.window, only=learned),
        Windows(robot.name, robot, recipe.window, stride=recipe.window, only=heldout), tuple(robot.cameras),
        units(rows, gripper),
    )  # fmt: skip


def open_data(recipe: Recipe, data: Sequence[str]) -> Material:
    """What `--data` names: by default, or for "tabletop", the embedded world; else as `folders`."""
    return table(recipe) if list(data) in ([], [WORLD]) else folders(recipe, data)


def check_parts(parts: Mapping[str, str], size: str) -> None:
    """Raise UserError for an unknown role, or the published size without its encoders."""
    check_roles(parts, (VISION, TEXT, POLICY))
    lacking = [role for role in (VISION, TEXT) if role not in parts]
    if size == "published" and lacking:
        said = " and ".join(f"--parts {role}=FOLDER" for role in lacking)
        raise UserError(f"the published size needs its encoders, a ViT-B/16 of MAE and a CLIP ViT-B/32; give {said}")


def check_policy(policy: GR1Policy, config: GR1Config) -> None:
    """Raise UserError where a ready policy does not read these encoders, cameras, states and actions."""
    for name in ("vision_width", "text_width", "cameras", "state_size", "action_size", "gripper"):
        ours, theirs = (getattr(one, name) for one in (policy.config, config))
        same = list(ours) == list(theirs) if name == "cameras" else ours == theirs
        if not same:
            raise UserError(f"the policy was made for {name} {ours}, and the encoders and episodes have {theirs}")


def meta_policy(config: GR1Config) -> None:
    """See, without weights, that there is such a policy. Raises UserError as its constructor."""
    with torch.device("meta"):
        GR1Policy(config)
