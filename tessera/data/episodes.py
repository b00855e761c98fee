"""An episode: what a robot saw, sensed and did while it did as it was told.

Shape legend: T steps; S and A numbers in a state and in an action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tessera.data.sample import Action, Sample, Segment, State, Text, Video
from tessera.errors import UserError


@dataclass(frozen=True)
class Episode:
    """What each camera saw, uint8 [T, H, W, 3], `state` float32 [T, S] and `action` float32 [T, A]; action t follows
    picture t. `goal` is the instruction; `task` a short name of what kind it is, or empty.

    Raises:
        UserError: the pictures, states and actions are not equally many.
    """

    cameras: Mapping[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    goal: str
    task: str = ""

    def __post_init__(self) -> None:
        counts = {name: len(frames) for name, frames in self.cameras.items()}
        counts |= {"state": len(self.state), "action": len(self.action)}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise UserError(f"an episode needs as many pictures as states and actions, not {said}")

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class Robot:
    """Who acts: its name, `fps` actions a second, the lowest and highest value of actions (numbers or float [A]), and
    what the numbers of a state and of an action are called."""

    name: str
    fps: int
    limits: tuple[Any, Any]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]


def checked_actions(
    action: ArrayLike, low: ArrayLike, high: ArrayLike, names: Sequence[str] = (), where: str = ""
) -> np.ndarray:
    """Actions as float32 [..., A], all between `low` and `high`, which are numbers or float [A].

    Raises:
        UserError: an action has another length, or a value that is not a number or outside the limits; `where` says
            whose it is.
    """
    values = np.asarray(action, dtype=np.float32)
    low, high = np.broadcast_arrays(np.asarray(low, np.float32), np.asarray(high, np.float32))
    width = len(names) or (low.size if low.ndim else 0)
    if not values.ndim or (width and values.shape[-1] != width):
        raise UserError(f"an action{where} is {width} numbers, not an array {list(values.shape)}")
    reach = 1e-6 * np.maximum(1.0, high - low)
    outside = ~((values >= low - reach) & (values <= high + reach))  # what is not a number is outside as well
    if outside.any():
        index = tuple(int(one) for one in np.argwhere(outside)[0])
        least, most = (np.broadcast_to(limit, values.shape)[index] for limit in (low, high))
        name = names[index[-1]] if names else f"number {index[-1]}"
        raise UserError(
            f"{name} of an action{where} is {values[index]:g}, outside its limits {least:g} and {most:g};"
            " clip the action, or put it into the units of its world"
        )
    return values


def episode_sample(episode: Episode, fps: float, name: str, meta: Mapping[str, Any] | None = None) -> Sample:
    """An episode as a Sample: instruction, a film of each camera, states, all only read; and actions, learned."""
    segments: list[Segment] = [Text(episode.goal, learned=False)]
    segments += [Video(frames, fps, learned=False) for frames in episode.cameras.values()]
    segments += [State(episode.state), Action(episode.action)]
    return Sample(tuple(segments), id=name, meta=meta or {})
