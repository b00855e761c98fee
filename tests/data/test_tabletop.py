"""The table: its moves, its goals, its expert, and its Gymnasium environment."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tessera.data.sample import Text
from tessera.data.worlds import open_world
from tessera.data.worlds.tabletop import ID, TASKS, Goal, Table, Tabletop, chain, done, random_goal, random_table
from tessera.data.worlds.tabletop.chains import MAX_STEPS, demonstrations, steady_expert
from tessera.data.worlds.tabletop.draw import hand_view, static_view
from tessera.data.worlds.tabletop.goals import SENTENCES, feasible, goals, sentences
from tessera.data.worlds.tabletop.table import BUTTON, FINGER, GROUND, LEVEL, LIFT, RADIUS, RAIL, RAIL_Y, STEP, Thing
from tessera.errors import UserError
from tessera.extras import needed

UP, DOWN, OPEN, SHUT = (0, 0, 1, 1), (0, 0, -1, 1), (0, 0, 0, 1), (0, 0, 0, -1)


def _table(*places: tuple[float, float], x: float = 0.5, y: float = 0.5, z: float = 1.0, **more: object) -> Table:
    colours = ("red", "blue", "green")
    things = [Thing(colour, "square", 0.0, *place) for colour, place in zip(colours, places, strict=False)]
    return Table(things, x, y, z, **more)  # type: ignore[arg-type]


def _do(table: Table, *actions: tuple[float, ...]) -> Table:
    for action in actions:
        table.act(action)
    return table


def _reaches(table: Table, goal: Goal) -> bool:
    start = table.copy()
    for count, action in enumerate(steady_expert(table, goal)):
        table.act(action)
        if done(goal, start, table) or count == MAX_STEPS:
            break
    return done(goal, start, table)


def test_an_action_of_one_moves_the_gripper_by_its_step() -> None:
    table = _do(_table(), (1, -0.5, -1, 1))
    assert np.allclose(table.arm, [0.5 + STEP, 0.5 - STEP / 2, 1 - LIFT, 1])


def test_a_low_gripper_pushes_a_thing_straight_ahead_and_a_high_one_does_not() -> None:
    low = _do(_table((0.5, 0.5), x=0.3, z=0.0, opened=False), *[(1, 0, 0, -1)] * 4)
    assert low.things[0].x == pytest.approx(low.x + RADIUS + FINGER) and low.things[0].y == pytest.approx(0.5)
    high = _do(_table((0.5, 0.5), x=0.3, z=LEVEL, opened=False), *[(1, 0, 0, -1)] * 4)
    assert (high.things[0].x, high.x) == (0.5, pytest.approx(0.54))


def test_a_thing_at_the_edge_of_the_ground_stops_the_gripper() -> None:
    table = _do(_table((0.85, 0.5), x=0.7, z=0.0, opened=False), *[(1, 0, 0, -1)] * 8)
    assert table.things[0].x <= GROUND[0][1] and table.x <= table.things[0].x - RADIUS - FINGER + 1e-6


def test_a_pushed_thing_pushes_the_next() -> None:
    table = _do(_table((0.45, 0.5), (0.65, 0.5), x=0.3, z=0.0, opened=False), *[(1, 0, 0, -1)] * 4)
    assert table.things[1].x - table.things[0].x == pytest.approx(2 * RADIUS) and table.things[1].x > 0.7


def test_fingers_that_shut_around_a_thing_lift_it_and_let_it_go_where_they_open() -> None:
    table = _do(_table((0.5, 0.5)), *[DOWN] * 4, SHUT)
    assert table.held == 0
    _do(table, *[(1, 0, 1, -1)] * 4, OPEN)
    assert table.held is None and table.things[0].x == pytest.approx(0.5 + 4 * STEP)


def test_fingers_that_shut_beside_a_thing_hold_nothing() -> None:
    assert _do(_table((0.7, 0.5)), *[DOWN] * 4, SHUT).held is None


def test_a_shut_gripper_comes_to_rest_on_a_thing() -> None:
    assert _do(_table((0.5, 0.5), opened=False), *[(0, 0, -1, -1)] * 4).z == pytest.approx(LEVEL)


def test_a_thing_let_go_on_another_lies_on_it_and_rides_along_when_that_is_pushed() -> None:
    table = _do(_table((0.5, 0.5), (0.5, 0.7), z=0.0), SHUT, *[(0, 0, 1, -1)] * 4)
    _do(table, (0, 1, 0, -1), (0, 1, 0, -1), (0, 1, 0, -1), (0, 1 / 3, 0, -1), *[(0, 0, -1, -1)] * 4, OPEN)
    assert table.things[0].on == 1 and table.level(0) == 1 and not table.clear(1)
    table.x, table.z, table.opened = 0.3, 0.0, False
    offset = table.things[0].x - table.things[1].x
    _do(table, *[(1, 0, 0, -1)] * 4)
    assert table.things[1].x > 0.6 and table.things[0].x - table.things[1].x == pytest.approx(offset)


def test_the_button_works_once_each_time_that_a_shut_gripper_comes_down_on_it() -> None:
    table = _do(_table(x=BUTTON[0], y=BUTTON[1], opened=False), *[(0, 0, -1, -1)] * 6)
    assert table.lamp
    assert not _do(table, *[(0, 0, 1, -1)] * 2, *[(0, 0, -1, -1)] * 4).lamp


def test_a_gripped_knob_goes_along_its_rail_and_no_further() -> None:
    table = _do(_table(x=RAIL[0], y=RAIL_Y), *[DOWN] * 4, SHUT, *[(1, 1, 1, -1)] * 20)
    assert (table.slider, table.y) == (1, RAIL_Y) and not _do(table, OPEN, UP).knob


def test_things_never_overlap_nor_leave_the_ground_whatever_is_done() -> None:
    rng = np.random.default_rng(0)
    for seed in range(10):
        table = random_table(np.random.default_rng(seed))
        for _ in range(150):
            table.act(rng.uniform(-1, 1, 4) + (0, 0, -0.2, 0))
            for index in table.standing():
                thing = table.things[index]
                inside = GROUND[0][0] <= thing.x <= GROUND[0][1] and GROUND[1][0] <= thing.y <= GROUND[1][1]
                apart = [table.gap(other, thing.x, thing.y) for other in table.standing() if other != index]
                assert inside and min(apart, default=1) > 2 * RADIUS - 0.01


def test_every_task_has_several_sentences_that_name_what_it_is_about() -> None:
    table = _table((0.3, 0.5), (0.7, 0.5))
    for task in TASKS:
        assert len(set(SENTENCES[task])) >= 5
        for goal in goals(table, task):
            for text in sentences(goal, table):
                assert ("red square" in text) == (0 in (goal.thing, goal.onto)), text


def test_a_goal_is_never_reached_already_and_a_full_hand_only_puts_down() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        table = random_table(rng)
        for task in TASKS:
            assert not any(done(goal, table, table) for goal in goals(table, task))
        table.held, table.opened = 0, False
        assert {goal.task.split()[0] for task in TASKS for goal in goals(table, task)} <= {"place", "stack"}


def test_a_push_needs_room_and_a_carried_thing_is_not_pushed() -> None:
    table = _table((0.2, 0.5), (0.6, 0.5))
    assert not feasible(Goal("push left", 0), table) and feasible(Goal("push right", 0), table)
    after = table.copy()
    after.things[1] = Thing("blue", "square", 0.0, 0.75, 0.5)
    assert done(Goal("push right", 1), table, after)
    after.held = 1
    assert not done(Goal("push right", 1), table, after)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_does_each_task(task: str) -> None:
    tried = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = random_table(rng)
        goal = random_goal(table, rng, (task,))
        if goal is not None:
            tried += 1
            assert _reaches(table, goal), goal
    assert tried >= 5


def test_chains_are_five_different_tasks_that_can_be_done_one_after_the_other() -> None:
    reached = 0
    for seed in range(20):
        asked = chain(seed)
        assert len({goal.task for goal in asked.goals}) == 5
        table = asked.table.copy()
        for goal in asked.goals:
            assert feasible(goal, table)
            reached += _reaches(table, goal)
    assert reached == 100
    assert chain(3) == chain(3) != chain(4)


def test_the_expert_arrives_though_its_actions_are_disturbed() -> None:
    episodes = [len(list(demonstrations(chain(seed), noise=0.1, seed=seed))) for seed in range(3)]
    assert episodes == [5, 5, 5]


@pytest.fixture
def env() -> Iterator[gymnasium.Env]:
    made = gymnasium.make(ID, render_mode="rgb_array")
    yield made
    made.close()


def test_gymnasium_finds_nothing_wrong_with_the_environment(env: gymnasium.Env) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_it_can_be_made_by_the_name_of_its_module() -> None:
    assert isinstance(gymnasium.make(f"tessera.data.worlds.tabletop:{ID}").unwrapped, Tabletop)


def test_the_same_seed_and_actions_give_the_same_pictures(env: gymnasium.Env) -> None:
    def played(seed: int) -> list[np.ndarray]:
        actions = np.random.default_rng(1).uniform(-1, 1, (8, 4)).astype(np.float32)
        seen, info = env.reset(seed=seed)
        steps = [seen, *(env.step(action)[0] for action in actions)]
        assert info["goal"]
        return [step[name] for step in steps for name in ("static", "hand", "state")]

    once, again, other = played(5), played(5), played(6)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(once[::3], other[::3], strict=True))


def test_an_episode_ends_with_a_reward_where_its_goal_is_reached_and_without_one_after_its_steps(
    env: gymnasium.Env,
) -> None:
    env.reset(seed=0, options={"task": "lamp on"})
    table = env.unwrapped.table
    for action in steady_expert(table, env.unwrapped.goal):
        _, reward, terminated, truncated, info = env.step(action)
        if terminated:
            break
    assert (reward, truncated, info["is_success"]) == (1, False, True) and table.lamp
    env.reset(seed=1)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(MAX_STEPS)]
    assert ends == [(False, False)] * (MAX_STEPS - 1) + [(False, True)]


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ([0, 1.5, 0, 0], "dy of an action is 1.5, outside its limits -1 and 1; clip the action"),
        ([0, 0, np.nan, 0], "dz of an action is nan, outside its limits -1 and 1"),
        ([0, 0, 0], "an action is 4 numbers, not an array [3]"),
    ],
)
def test_an_action_outside_the_limits_is_one_sentence(action: list[float], sentence: str) -> None:
    env = Tabletop()
    env.reset(seed=0)
    with pytest.raises(UserError) as error:
        env.step(np.array(action))
    assert sentence in str(error.value)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'lamp on'"):
        Tabletop().reset(seed=0, options={"task": "lamp in"})


def test_what_is_not_installed_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match=r"no_such_package is not installed; .*pip install 'tessera-vl\[robot\]'"):
        needed("no_such_package", "robot")


def test_pictures_show_what_has_changed_where_it_has() -> None:
    table = _table((0.3, 0.6), z=0.0, x=0.8, y=0.8)
    dark, there = static_view(table), table.copy()
    table.lamp = True
    changed = (static_view(table) != dark).any(-1)
    assert changed[:20, :20].sum() > 20 and not changed[24:].any() and not changed[:, 24:].any()
    there.things[0] = Thing("red", "square", 0.0, 0.5, 0.6)
    moved = static_view(there)
    assert moved[38, 32, 0] > 200 > 60 > moved[38, 32, 1] and dark[38, 19, 1] < 60 < moved[38, 19, 1]


def test_the_hand_camera_looks_closer_the_lower_it_is() -> None:
    red = [(hand_view(_table((0.5, 0.5), z=z))[..., 1] < 70).sum() for z in (0.9, 0.3)]
    assert red[1] > 1.3 * red[0]


def test_the_world_gives_the_same_episode_in_any_order_and_none_of_its_held_out_chains_for_training() -> None:
    world = open_world("tabletop")
    source = world.source("episodes")
    late, first = source[6], source[0]
    again = open_world("tabletop").source("episodes")[6]
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(late.films, again.films, strict=True))
    assert isinstance(first.segments[0], Text) and not first.segments[0].learned and first.segments[-1].learned
    assert first.text != world.source("episodes", "heldout")[0].text
    with pytest.raises(UserError, match="no task 'pairs'"):
        world.source("pairs")
