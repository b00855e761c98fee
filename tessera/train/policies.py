"""Learning to act from windows of episodes: their loader and the stages.

    loader = window_loader(windows, senses, FeatureStore(senses.look), lesson, batch=16)
    trainer.run([policy_stage(policy, loader, lesson, steps=500)])

Legend: B windows of T steps, S pixels a side, N_p patch features of width C of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from tessera.data.loader import Loader, Samples
from tessera.data.sample import Image
from tessera.data.windows import Windows
from tessera.models.policy import GR1Policy
from tessera.models.policy.learning import Lesson
from tessera.models.policy.senses import Senses
from tessera.train.features import FeatureStore
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage

Window = Mapping[str, Any]


def window_loader(
    source: Windows, senses: Senses, store: FeatureStore, lesson: Lesson, batch: int, *, seed: int = 0, rank: int = 0,
    world_size: int = 1, workers: int = 0,
) -> Loader[dict[str, Any]]:  # fmt: skip
    """Batches of windows: {"goal": float [B, E], "steps": bool [B, T], "seen CAMERA": float [B, T, 1 + N_p, C], "pixels
    CAMERA": float [B, T, 3, S, S] where pictures are foreseen, "state" and "action": float [B, T, ...] where actions
    are learned, "sample_ids"}.

    Args:
        store: over `senses.look`; a frame that several windows show is looked at once.
        batch: windows of all processes together.
    """
    part = partial(window_batch, senses=senses, store=store, lesson=lesson, name=source.fingerprint())
    samples = Samples(_as_it_is, part, batch)
    drawn: Any = source  # of windows, not of Samples
    return Loader(drawn, samples, seed=seed, rank=rank, world_size=world_size, workers=workers)


def _as_it_is(window: Any, _: np.random.Generator) -> Any:
    return window


def window_batch(
    windows: Sequence[Window], *, senses: Senses, store: FeatureStore, lesson: Lesson, name: str
) -> dict[str, Any]:
    """A batch of windows of the source `name`, as `window_loader` gives it."""
    steps = np.stack([one["mask"] for one in windows]).astype(bool)
    batch: dict[str, Any] = {
        "goal": senses.read([one["goal"] for one in windows]),
        "steps": torch.from_numpy(steps),
        "sample_ids": [f"episode {one['episode']} from frame {one['frame']}" for one in windows],
    }
    if lesson.act:
        for part in ("state", "action"):
            batch[part] = torch.from_numpy(np.stack([one[part] for one in windows]).astype(np.float32))
    for camera in lesson.cameras:
        pictures = [picture for one in windows for picture in frames(one, camera, name)]
        batch[f"seen {camera}"] = store(pictures).unflatten(0, steps.shape)
        if lesson.foresee:
            batch[f"pixels {camera}"] = torch.from_numpy(senses.arrays(pictures)).unflatten(0, steps.shape)
    return batch


def batches_of(
    source: Windows, senses: Senses, store: FeatureStore, lesson: Lesson, batch: int
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """All windows of `source` once, in order, without the pictures that are to be foreseen, and of each window the
    number of its episode."""
    acting, name = replace(lesson, foresee=False), source.fingerprint()
    for at in range(0, len(source), batch):
        windows = [source[place] for place in range(at, min(at + batch, len(source)))]
        made = window_batch(windows, senses=senses, store=store, lesson=acting, name=name)
        yield made, [one["episode"] for one in windows]


def frames(window: Window, camera: str, name: str) -> list[Image]:
    """A camera's T pictures; padding, of any content, is all one picture. Keys begin with `name`, the source's."""
    place = f"{name}/{window['episode']}/{camera}"
    return [
        Image(picture, key=f"{place}/{window['frame'] + number}" if valid else f"{name}/{camera}/padding")
        for number, (picture, valid) in enumerate(zip(window[camera], window["mask"], strict=True))
    ]


def policy_stage(
    policy: GR1Policy, loader: Loader[dict[str, Any]], lesson: Lesson, steps: int, *, name: str = "act",
    optimiser: Optimiser | None = None, weights: Mapping[str, float] | None = None, accumulate: int = 1,
) -> Stage:  # fmt: skip
    """The stage in which `policy` takes `lesson`.

    Args:
        weights: of the losses by name, 1 where not named.
    """
    return Stage(
        name=name, model=policy, objective=lesson, loader=loader, steps=steps, accumulate=accumulate,
        counts=partial(lesson.counts, gripper=policy.config.gripper), weights=weights or {},
        optimiser=optimiser or Optimiser(),
    )  # fmt: skip
