"""A tiny GR-1 and what it reads."""

from __future__ import annotations

from typing import Any

import torch

from tessera.models.policy import GR1Config, GR1Policy, Seen

WINDOWS, STEPS, PATCHES = 2, 5, 6
FIELDS: dict[str, Any] = {
    "width": 32, "depth": 2, "heads": 4, "window": STEPS, "text_width": 12, "vision_width": 16, "latents": 3,
    "resampler_depth": 2, "resampler_heads": 2, "resampler_head_width": 8, "image_size": 16, "patch_size": 8,
    "decoder_heads": 4, "ahead": 2, "vision_grid": [2, 3],
}  # fmt: skip


def tiny(**fields: Any) -> GR1Policy:
    """In evaluation mode, with weights of which none is zero or one."""
    torch.manual_seed(0)
    model = GR1Policy(GR1Config(**{**FIELDS, **fields})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs(model: GR1Policy, seed: int = 0, windows: int = WINDOWS) -> dict[str, Any]:
    """Random arguments of `forward`, of whole windows."""
    config, rng = model.config, torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(windows, *shape, generator=rng)

    state = random(config.window, config.state_size)
    if config.gripper:
        state[..., -1] = state[..., -1].sign()
    seen = {
        name: Seen(random(config.window, config.vision_width), random(config.window, PATCHES, config.vision_width))
        for name in config.cameras
    }
    steps = torch.ones(windows, config.window, dtype=torch.bool)
    return {"goal": random(config.text_width), "steps": steps, "seen": seen, "state": state}
