"""A tiny GR-1 whose values follow from a formula, and what it reads.

The official code is not here. `gr1_golden.json` holds what the model of the community's trainer gives
(EDiRobotics/GR1-Training, commit 673bb814a0, models/gr1.py, with the resampler of lucidrains/flamingo-pytorch, commit
10913abbc8) for these weights, copied into it under the names of `tests.models.test_gr1.released`: one action at a time,
its table of positions at zero. Its encoders stand aside; they give the features of `given`. Each output is flattened
over the valid steps, and written down in every STEP-th place.
"""

from __future__ import annotations

from typing import Any

import torch

from tessera.models.policy import GR1Config, GR1Policy, Seen
from tests.formula import fill, values

STEP = 17
WINDOWS, STEPS, PATCHES = 2, 4, 4
CONFIG: dict[str, Any] = {
    "width": 64, "depth": 2, "heads": 4, "window": STEPS, "text_width": 24, "vision_width": 32, "latents": 3,
    "resampler_depth": 2, "resampler_heads": 2, "resampler_head_width": 16, "image_size": 16, "patch_size": 8,
    "decoder_heads": 16, "vision_grid": [2, 2],
}  # fmt: skip
VALID = torch.tensor([[True] * STEPS, [True, True, False, False]])


def policy() -> GR1Policy:
    """In evaluation mode."""
    return fill(GR1Policy(GR1Config(**CONFIG)))


def given(model: GR1Policy) -> dict[str, Any]:
    """Arguments of `forward`: two windows, the second padded after two steps."""
    config = model.config
    goal = values("goal", (WINDOWS, config.text_width), 1.0)
    state = values("state", (WINDOWS, STEPS, config.state_size), 1.0)
    state[..., -1] = state[..., -1].sign()
    seen = {
        name: Seen(
            values(f"{name} token", (WINDOWS, STEPS, config.vision_width), 1.0),
            values(f"{name} patches", (WINDOWS, STEPS, PATCHES, config.vision_width), 1.0),
        )
        for name in config.cameras
    }
    return {"goal": goal / goal.norm(dim=1, keepdim=True), "steps": VALID, "seen": seen, "state": state}
