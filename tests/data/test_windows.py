"""Episodes cut into windows."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.data.episodes import Episode
from tessera.data.windows import Windows
from tessera.errors import UserError


def episode(steps: int, goal: str = "go") -> Episode:
    count = np.arange(1, steps + 1)
    pictures = np.broadcast_to(count.astype(np.uint8)[:, None, None, None], (steps, 4, 4, 3))
    return Episode({"static": pictures}, count[:, None].astype(np.float32), -count[:, None].astype(np.float32), goal)


def test_a_window_begins_at_every_step_and_is_padded_on_the_right() -> None:
    windows = Windows("two", [episode(3), episode(2, "stop")], length=3)
    assert [(one["episode"], one["frame"], one["goal"]) for one in (windows[n] for n in range(len(windows)))] == [
        (0, 0, "go"), (0, 1, "go"), (0, 2, "go"), (1, 0, "stop"), (1, 1, "stop"),
    ]  # fmt: skip
    second = windows[1]
    assert second["mask"].tolist() == [True, True, False]
    assert second["state"][:, 0].tolist() == [2, 3, 0] and second["action"][:, 0].tolist() == [-2, -3, 0]
    assert second["static"][:, 0, 0, 0].tolist() == [2, 3, 0] and second["static"].dtype == np.uint8


def test_a_stride_as_long_as_the_window_shows_every_step_once() -> None:
    windows = Windows("one", [episode(7)], length=3, stride=3)
    shown = [windows[n]["state"][windows[n]["mask"], 0].tolist() for n in range(len(windows))]
    assert sum(shown, []) == [1, 2, 3, 4, 5, 6, 7]


def test_some_episodes_alone_are_cut_under_their_own_numbers() -> None:
    windows = Windows("some", [episode(1), episode(2), episode(1)], length=2, only=[1])
    assert [windows[n]["episode"] for n in range(len(windows))] == [1, 1]


def test_the_fingerprint_is_of_the_episodes_and_their_cutting() -> None:
    same = {Windows(name, [episode(3)], length=2).fingerprint() for name in "ab"}
    changed = [
        Windows("a", [episode(3, "stay")], length=2), Windows("a", [episode(4)], length=2),
        Windows("a", [episode(3)], length=3), Windows("a", [episode(3)], length=2, stride=2),
        Windows("a", [episode(3)], length=2, only=[]),
    ]  # fmt: skip
    others = {one.fingerprint() for one in changed}
    assert len(same) == 1 and len(others) == 5 and not same & others


def test_windows_have_a_length() -> None:
    with pytest.raises(UserError, match="windows of 0 steps"):
        Windows("a", [], length=0)
