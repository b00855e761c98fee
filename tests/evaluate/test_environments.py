"""Environments by id."""

from __future__ import annotations

import pytest

from tessera.errors import UserError
from tessera.evaluate.environments import open_env

pytest.importorskip("gymnasium")


def test_our_own_table_is_opened_and_renders() -> None:
    env = open_env("tessera/Tabletop-v0")
    seen, info = env.reset(seed=0)
    assert {"static", "hand", "state"} == set(seen) and info["goal"]
    assert env.render().shape == (256, 256, 3)


def test_pusht_shows_pictures_and_where_it_is() -> None:
    pytest.importorskip("gym_pusht")
    env = open_env("gym_pusht/PushT-v0")
    seen, _ = env.reset(seed=0)
    assert seen["pixels"].shape == (96, 96, 3) and seen["agent_pos"].shape == (2,)


@pytest.mark.parametrize("name", ["tessera/Tabletop-v1", "gym_nowhere/PushT-v0", "Tabletop", "os/path", "a b/c"])
def test_an_unknown_environment_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match="there is no environment"):
        open_env(name)
