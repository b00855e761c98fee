"""How far a policy's actions are from an expert's, on episodes that it did not learn from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from tessera.models.policy import GR1Policy
from tessera.models.policy.learning import Lesson


@torch.no_grad()
def action_errors(
    policy: GR1Policy, lesson: Lesson, batches: Iterable[tuple[Mapping[str, Any], list[int]]]
) -> np.ndarray:
    """For each episode the mean over its steps of |action - expert's|, mean over the arm's numbers, in the units of the
    world; float64 [episodes], in the order of their numbers.

    Args:
        batches: of `tessera.train.policies.window_batch`, each with the number of every window's episode.
    """
    found: dict[int, list[float]] = defaultdict(list)
    size = policy.config.action_size - policy.config.gripper
    for batch, episodes in batches:
        said = policy(batch["goal"], batch["steps"], lesson.seen(batch), batch["state"], foresee=False)
        errors = (policy.actions(said) - batch["action"])[..., :size].abs().mean(-1)
        for episode, row, valid in zip(episodes, errors, batch["steps"], strict=True):
            found[episode] += row[valid].tolist()
    return np.array([np.mean(found[episode]) for episode in sorted(found)])
