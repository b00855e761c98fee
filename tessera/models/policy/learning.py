"""The objective of a policy's training stages: act as the expert did, and foresee what came (GR-1, section 3).

Legend: B windows of T steps, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tessera.models.policy.modeling import GR1Policy, Seen
from tessera.objectives.imitation import arm_error, foresight, gripper_error, patchify, standardised

ARM, GRIPPER = "arm", "gripper"


def foreseen(camera: str) -> str:
    """The name of the loss on a camera's future pictures."""
    return f"{camera} ahead"


@dataclass(frozen=True)
class Lesson:
    """What a stage asks of a policy.

    Args:
        cameras: whose pictures are read, in the order of the configuration.
        ahead: steps from a picture to the one that is foreseen from it.
        act: the expert's actions are learned; else windows have neither state nor action.
        foresee: the cameras' future pictures are learned.
    """

    cameras: tuple[str, ...]
    ahead: int
    act: bool = True
    foresee: bool = True

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, int]]:
        """The losses of a batch of `tessera.train.policies.window_loader`."""
        policy: GR1Policy = model
        steps = batch["steps"]
        state = batch["state"] if self.act else None
        said = policy(batch["goal"], steps, self.seen(batch), state, act=self.act, foresee=self.foresee)
        losses = {}
        if self.act:
            losses[ARM] = arm_error(said.arm, policy.arm_targets(batch["action"]), steps)
        if said.gripper is not None:
            losses[GRIPPER] = gripper_error(said.gripper, batch["action"][..., -1] > 0, steps)
        for name, patches in zip(self.cameras, said.patches or (), strict=self.foresee):
            wanted = patchify(batch[f"pixels {name}"], policy.config.patch_size)
            wanted = standardised(wanted) if policy.config.standardised else wanted
            losses[foreseen(name)] = foresight(patches, wanted, steps, self.ahead)
        return losses  # type: ignore[return-value]

    def seen(self, batch: Mapping[str, Any]) -> dict[str, Seen]:
        """What the cameras saw, of a batch."""
        whole = {name: batch[f"seen {name}"] for name in self.cameras}
        return {name: Seen(one[:, :, 0], one[:, :, 1:]) for name, one in whole.items()}

    def counts(self, batch: Mapping[str, Any], gripper: bool) -> dict[str, int]:
        """How many steps each loss of a batch is over; `gripper` where the policy has one."""
        steps = batch["steps"]
        found = {ARM: int(steps.sum())} if self.act else {}
        if self.act and gripper:
            found[GRIPPER] = found[ARM]
        if self.foresee:
            found |= {foreseen(name): int(steps[:, self.ahead :].sum()) for name in self.cameras}
        return found
