"""The table as a Gymnasium environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tessera.data.episodes import checked_actions
from tessera.data.worlds.tabletop.draw import HAND, STATIC, hand_view, static_view
from tessera.data.worlds.tabletop.goals import TASKS, Goal, done, random_goal
from tessera.data.worlds.tabletop.table import Table, random_table
from tessera.errors import UserError, nearest
from tessera.extras import needed

if TYPE_CHECKING:
    import gymnasium
else:
    gymnasium = needed("gymnasium", "robot")

ID = "tessera/Tabletop-v0"
FPS = 10  # actions, and so pictures, a second
MAX_STEPS = 80  # the expert's longest way to a goal is about 50
VIDEO_PIXELS = 256


class Tabletop(gymnasium.Env):
    """A gripper over a table, a goal in words, pictures from two cameras.

    Observations: "static" uint8 [64, 64, 3], the table from above; "hand" uint8 [32, 32, 3], down from the gripper;
    "state" float32 [4], the gripper's x, y, z in [0, 1] and 1 open or -1 closed. Actions: float32 [4] in [-1, 1],
    dx, dy, dz and the fingers, open where 0 or more. `info` has the goal in words ("goal"), its task ("task"), and
    whether it is reached ("is_success"), which is worth a reward of 1 and ends the episode.

    `reset(options=...)` takes "goal", a Goal that is feasible on the table that the seed draws, or "task", one of
    `goals.TASKS`; and "table", a Table to start from. `begin` sets the next goal without moving anything.

    Args:
        render_mode: "rgb_array" for `render` to give the table as uint8 [256, 256, 3], or None.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}
    action_limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    action_names: ClassVar[tuple[str, ...]] = ("dx", "dy", "dz", "gripper")
    state_names: ClassVar[tuple[str, ...]] = ("x", "y", "z", "gripper")

    def __init__(self, render_mode: str | None = None) -> None:
        box = gymnasium.spaces.Box
        self.render_mode = render_mode
        self.action_space = box(*self.action_limits, (len(self.action_names),), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "static": box(0, 255, (STATIC, STATIC, 3), np.uint8),
                "hand": box(0, 255, (HAND, HAND, 3), np.uint8),
                "state": box(np.array([0, 0, 0, -1], np.float32), np.ones(4, np.float32), dtype=np.float32),
            }
        )
        self.table: Table | None = None
        self.goal = Goal("")
        self._start: Table | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A new table and goal.

        Raises:
            UserError: a task that there is not.
        """
        super().reset(seed=seed)
        options = options or {}
        task = options.get("task")
        if task is not None and task not in TASKS:
            raise UserError(f"the table has no task {task!r}{nearest(task, TASKS)}")
        goal: Goal | None = options.get("goal")
        while True:
            self.table = options["table"].copy() if "table" in options else random_table(self.np_random)
            goal = goal or random_goal(self.table, self.np_random, (task,) if task else TASKS)
            if goal is not None:
                break
            if "table" in options:
                raise UserError(
                    f"{task or 'nothing'!r} cannot be done on the table that was given; choose another task"
                )
        return self.begin(goal)

    def begin(self, goal: Goal) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Set the next goal from where everything is now; gives what `reset` gives."""
        assert self.table is not None, "reset the environment first"
        self.goal, self._start = goal, self.table.copy()
        return self._see(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One action of float [4].

        Raises:
            UserError: it has another shape, goes outside the limits, or is not a number.
        """
        assert self.table is not None, "reset the environment first"
        self.table.act(checked_actions(action, *self.action_limits, self.action_names))
        info = self._info()
        return self._see(), float(info["is_success"]), info["is_success"], False, info

    def render(self) -> np.ndarray | None:
        """The table from above, larger; None without a render mode."""
        if self.render_mode is None or self.table is None:
            return None
        return static_view(self.table, VIDEO_PIXELS)

    def _see(self) -> dict[str, np.ndarray]:
        assert self.table is not None
        return {"static": static_view(self.table), "hand": hand_view(self.table), "state": self.table.arm}

    def _info(self) -> dict[str, Any]:
        assert self.table is not None and self._start is not None
        reached = done(self.goal, self._start, self.table)
        return {"goal": self.goal.text, "task": self.goal.task, "is_success": reached}


def register() -> None:
    """Make `gymnasium.make("tessera/Tabletop-v0")` work."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=f"{__name__}:Tabletop", max_episode_steps=MAX_STEPS)


register()
