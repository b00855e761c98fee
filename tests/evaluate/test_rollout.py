"""Policies in environments: what they are shown and told, and how their tries are counted."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from tessera.data.worlds.tabletop import ID, Tabletop, chain
from tessera.data.worlds.tabletop.chains import steady_expert
from tessera.errors import UserError
from tessera.evaluate.intervals import exact_binomial
from tessera.evaluate.rollout import Policy, chain_lengths, roll_together, rollout, success_rate


class Counting(gymnasium.Env):
    """Counts its steps in its observation. Ends after as many as the seed's last digit, well where that is even."""

    action_space = gymnasium.spaces.Box(-2, 3, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(0, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        self.left, self.good, self.count = 1 + seed % 10, seed % 2 == 0, 0
        return np.zeros(1, np.float32), {"task": "even" if self.good else "odd"}

    def step(self, action):  # type: ignore[no-untyped-def]
        self.count += 1
        ended = self.count == self.left
        info = {"task": "even" if self.good else "odd", "is_success": self.good and ended}
        return np.full(1, self.count, np.float32), 0.5, ended, False, info


def _expert(env: Tabletop, giving_up: tuple[str, ...] = ()) -> Policy:
    """Knows the table; stands still where the goal is of a task in `giving_up`."""
    now = SimpleNamespace(goal=None, actions=iter(()))

    def act(seen: Mapping[str, np.ndarray], goal: str) -> np.ndarray:
        assert goal == env.goal.text and seen["static"].shape[1:] == (64, 64, 3)
        if now.goal is not env.goal:
            now.goal, now.actions = env.goal, steady_expert(env.table, env.goal)
        return np.zeros(4) if env.goal.task in giving_up else next(now.actions)

    return act


def test_a_policy_sees_the_latest_observations_with_the_latest_last() -> None:
    shown = []

    def act(seen: Mapping[str, np.ndarray], goal: str) -> np.ndarray:
        shown.append(seen["observation"][:, 0].tolist())
        assert goal == "count"
        return np.zeros(1)

    tried = rollout(Counting(), act, seed=4, window=3, goal="count")
    assert shown == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert (tried.success, tried.steps, tried.reward, tried.frames) == (True, 5, 2.5, [])


def test_a_success_rate_is_counted_by_task_with_exact_intervals() -> None:
    report = success_rate(Counting(), lambda seen, goal: np.zeros(1), 10, seed=10)
    assert report.success == exact_binomial(5, 10) and report.steps == 5.5
    assert report.tasks == {"even": exact_binomial(5, 5), "odd": exact_binomial(0, 5)}
    assert report.to_json()["success"]["value"] == 0.5


def test_tries_side_by_side_end_as_they_would_alone() -> None:
    def act(seen: Mapping[str, np.ndarray], goal: str) -> np.ndarray:
        return seen["observation"][:1, 0] % 3

    asked = []

    def each(seen, goals):  # type: ignore[no-untyped-def]
        asked.append(len(goals))
        return [act(one, goal) for one, goal in zip(seen, goals, strict=True)]

    seeds, envs = range(3, 7), [Counting() for _ in range(4)]
    begun = [env.reset(seed=seed) for env, seed in zip(envs, seeds, strict=True)]
    alone = [rollout(Counting(), act, seed=seed, window=2, steps=6) for seed in seeds]
    assert roll_together(envs, each, begun, window=2, steps=6) == alone
    assert asked == [4, 4, 4, 4, 3, 2] and [one.steps for one in alone] == [4, 5, 6, 6]


def test_a_try_ends_after_its_steps() -> None:
    assert rollout(Counting(), lambda seen, goal: np.zeros(1), seed=8, steps=2).steps == 2


def test_an_action_outside_an_environments_limits_is_one_sentence() -> None:
    with pytest.raises(UserError, match="number 0 of an action is 3.5, outside its limits -2 and 3"):
        rollout(Counting(), lambda seen, goal: np.full(1, 3.5), seed=0)


def test_a_task_that_an_environment_passes_over_is_one_sentence() -> None:
    with pytest.raises(UserError, match="the environment Counting takes no task, and was asked for 'lift'"):
        rollout(Counting(), lambda seen, goal: np.zeros(1), seed=0, task="lift")
    env = gymnasium.make(ID)
    assert rollout(env, _expert(env.unwrapped), seed=0, task="lift").task == "lift"
    with pytest.raises(UserError, match="the table has no task 'lfit'; did you mean 'lift'"):
        rollout(env, _expert(env.unwrapped), seed=0, task="lfit")


def test_the_expert_reaches_what_it_is_asked_for_and_its_film_has_a_frame_more_than_steps() -> None:
    env = gymnasium.make(ID, render_mode="rgb_array")
    tried = rollout(env, _expert(env.unwrapped), seed=3, film=True)
    assert tried.success and len(tried.frames) == tried.steps + 1 and tried.frames[0].shape == (256, 256, 3)
    assert success_rate(env, _expert(env.unwrapped), 4).success.value == 1


def test_a_chain_counts_until_the_first_goal_that_is_not_reached() -> None:
    env, asked = Tabletop(), [chain(seed) for seed in range(3)]
    assert chain_lengths(env, _expert(env), asked).lengths == (5, 5, 5)
    third = asked[0].goals[2].task
    report = chain_lengths(env, _expert(env, (third,)), asked[:1], steps=60)
    assert report.lengths == (2,) and [share.value for share in report.reached] == [1, 1, 0, 0, 0]
    assert report.average.value == 2


def test_chains_need_an_environment_that_has_them() -> None:
    with pytest.raises(UserError, match="Counting has one goal an episode"):
        chain_lengths(Counting(), lambda seen, goal: np.zeros(1), [chain(0)])


def test_it_works_on_an_environment_that_is_not_ours() -> None:
    pytest.importorskip("gym_pusht")
    env = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")

    def act(seen: Mapping[str, np.ndarray], goal: str) -> np.ndarray:
        assert seen["pixels"].dtype == np.uint8 and goal == "push the T onto its outline"
        return seen["agent_pos"][-1]

    report = success_rate(env, act, 2, steps=4, goal="push the T onto its outline")
    assert report.success == exact_binomial(0, 2) and report.steps == 4
