"""Episodes cut into windows of a few steps, which is what policies learn from.

Legend: T steps of a window; S and A numbers in a state and in an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.data.episodes import Episode
from tessera.errors import UserError


class Windows:
    """A source of windows, one from every `stride`-th step of every episode on. At an episode's end they are padded on
    the right with zeros.

    A window is {camera: uint8 [T, H, W, 3] for each, "state": float32 [T, S], "action": float32 [T, A], "mask": bool
    [T], True where it is no padding, "goal": str, "episode" and "frame": int, where it begins}.

    Args:
        episodes: in memory, or read when they are asked for (`LeRobotEpisodes`).
        only: numbers of the episodes that are cut; None for all.

    Raises:
        UserError: the windows or the stride are shorter than 1.
    """

    def __init__(
        self, name: str, episodes: Sequence[Episode], length: int, *, stride: int = 1, only: Sequence[int] | None = None
    ) -> None:
        if length < 1 or stride < 1:
            raise UserError(f"windows of {length} steps every {stride} steps; both are at least 1")
        self.name, self.episodes, self.length, self.stride = name, episodes, length, stride
        self.only = list(range(len(episodes)) if only is None else only)
        lengths = getattr(episodes, "lengths", None) or [len(one) for one in episodes]
        self._starts = [(number, at) for number in self.only for at in range(0, lengths[number], stride)]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        number, start = self._starts[index]
        episode = self.episodes[number]
        valid = min(self.length, len(episode) - start)

        def cut(values: np.ndarray) -> np.ndarray:
            padding = np.zeros((self.length - valid, *values.shape[1:]), values.dtype)
            return np.concatenate([values[start : start + valid], padding])

        return {
            **{camera: cut(pictures) for camera, pictures in episode.cameras.items()},
            "state": cut(episode.state), "action": cut(episode.action), "mask": np.arange(self.length) < valid,
            "goal": episode.goal, "episode": number, "frame": start,
        }  # fmt: skip

    def fingerprint(self) -> str:
        """A hash of the cutting and of the episodes: their own, or of everything in them but the pictures, of which the
        first of each counts."""
        digest = hashlib.sha256(f"{self.length} {self.stride} {self.only}".encode())
        own = getattr(self.episodes, "fingerprint", None)
        if own is not None:
            digest.update(own().encode())
            return digest.hexdigest()[:16]
        for one in self.episodes:
            digest.update(one.goal.encode())
            for values in (one.state, one.action, *(pictures[0] for pictures in one.cameras.values())):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]
