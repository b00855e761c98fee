"""A policy with its frozen encoders in use: what cameras see and a goal in words in, actions out.

actor = tessera.load("runs/gr-1/model")
success_rate(gymnasium.make("tessera/Tabletop-v0"), actor, window=actor.policy.config.window)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.cards import read_card, write_card
from tessera.data.sample import Image
from tessera.errors import CheckpointError, UserError
from tessera.files import atomic_folder
from tessera.models.folder import read_folder
from tessera.models.policy import GR1Policy, PolicyOutput, Seen
from tessera.models.policy.senses import Senses
from tessera.objectives.imitation import patchify, unpatchify
from tessera.zoo.parts import quiet
from tessera.zoo.senses import read_senses, save_senses

KIND = "actor"
STATE = "state"
PIXELS, POSITION = "pixels", "agent_pos"  # what environments of LeRobot's kind call picture and state
POLICY, VISION, TEXT = "policy", "vision", "text"  # folders within the model's

Observed = Mapping[
    str, np.ndarray
]  # pictures uint8 [t, H, W, 3] of each camera, and "state" float [t, S]; the latest last


@dataclass
class Actor:
    """A policy and its senses. It is a policy as `tessera.evaluate.rollout` takes them: called with what was observed
    lately and a goal, it gives the next action.

    Raises:
        UserError: policy and encoders are not of the same widths.
    """

    policy: GR1Policy
    senses: Senses
    _recent: dict[bytes, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        config = self.policy.config
        if (config.vision_width, config.text_width) != self.senses.widths:
            raise UserError(
                f"the policy reads features of widths {config.vision_width} and {config.text_width}, and its encoders"
                f" give {' and '.join(map(str, self.senses.widths))}; take those that it was trained with"
            )

    @property
    def abilities(self) -> tuple[str, ...]:
        """Commands that it answers."""
        return ("act",)

    def act(self, observed: Observed, goal: str) -> np.ndarray:
        """The next action, float32 [action_size], in the units of the world; a gripper's number is -1 (close) or 1
        (open).

        Args:
            observed: at most a window of the last steps; of more the latest are read.

        Raises:
            UserError: a camera that the policy has is missing, or the state.
        """
        return self.act_together([observed], [goal])[0]

    __call__ = act

    def act_together(self, observed: Sequence[Observed], goals: Sequence[str]) -> np.ndarray:
        """As `act`, in several worlds at once; float32 [worlds, action_size]."""
        output, last = self._think(observed, goals, foresee=False)
        return self.policy.actions(output)[torch.arange(len(last)), last].float().cpu().numpy()

    def within(self, env: Any) -> Callable[[Observed, str], np.ndarray]:
        """This actor as a policy of a Gymnasium environment: actions are clipped to its limits, and an environment with
        the names of LeRobot's (`pixels`, `agent_pos`) is understood."""
        act = self.within_each(env)
        return lambda observed, goal: act([observed], [goal])[0]

    def within_each(self, env: Any) -> Callable[[Sequence[Observed], Sequence[str]], np.ndarray]:
        """As `within`, for several environments of the kind of `env` side by side."""
        space = env.action_space

        def act(observed: Sequence[Observed], goals: Sequence[str]) -> np.ndarray:
            return np.clip(self.act_together([self.named(one) for one in observed], goals), space.low, space.high)

        return act

    def named(self, observed: Observed) -> Observed:
        """What an environment shows under the names that the policy knows."""
        cameras = self.policy.config.cameras
        names = {POSITION: STATE, **({PIXELS: cameras[0]} if len(cameras) == 1 else {})}
        return {names.get(name, name): values for name, values in observed.items()}

    def foresee(self, observed: Observed, goal: str) -> list[np.ndarray]:
        """What each camera is expected to see `ahead` steps after the last one, uint8 [side, side, 3], as large as the
        encoder's pictures. Where the policy foresees standardised patches, means and spreads are those of the last
        picture. Raises UserError as `act`."""
        config = self.policy.config
        output, (last,) = self._think([observed], [goal], foresee=True)
        pictures = []
        for name, patches in zip(config.cameras, output.patches or (), strict=True):
            foreseen = patches[0, last].float().cpu()
            if config.standardised:
                now = torch.from_numpy(self.senses.arrays([Image(observed[name][-1])])[0])
                now = patchify(now, config.patch_size)
                foreseen = foreseen * now.std(-1, keepdim=True) + now.mean(-1, keepdim=True)
            pictures.append(self._picture(unpatchify(foreseen, config.grid, config.patch_size)))
        return pictures

    @torch.no_grad()
    def _think(
        self, observed: Sequence[Observed], goals: Sequence[str], foresee: bool
    ) -> tuple[PolicyOutput, list[int]]:
        """The policy over windows that are padded on the right, and the place of the last valid step of each."""
        config, device = self.policy.config, self.policy.device
        for one in observed:
            self._check(one)
        valid = [min(config.window, len(one[STATE])) for one in observed]

        def padded(rows: Sequence[Tensor]) -> Tensor:
            filled = [torch.cat([row, row.new_zeros(config.window - len(row), *row.shape[1:])]) for row in rows]
            return torch.stack(filled).to(device)

        def lately(name: str) -> list[np.ndarray]:
            return [np.asarray(one[name][-steps:]) for one, steps in zip(observed, valid, strict=True)]

        looked = {name: padded(self._look(np.concatenate(lately(name))).split(valid)) for name in config.cameras}
        seen = {name: Seen(both[:, :, 0], both[:, :, 1:]) for name, both in looked.items()}
        state = padded([torch.from_numpy(row.astype(np.float32)) for row in lately(STATE)])
        steps = (torch.arange(config.window) < torch.tensor(valid)[:, None]).to(device)
        said = self.policy(self.senses.read(goals).to(device), steps, seen, state, foresee=foresee)
        return said, [number - 1 for number in valid]

    def _check(self, observed: Observed) -> None:
        read = (*self.policy.config.cameras, STATE)
        missing = [name for name in read if name not in observed]
        if missing:
            raise UserError(
                f"the policy reads {', '.join(read)}; the world does not show {', '.join(missing)},"
                f" only {', '.join(observed)}"
            )

    def _look(self, pictures: np.ndarray) -> Tensor:
        """Features [t, 1 + N_p, C]; those of pictures that the call before had too are remembered."""
        keys = [picture.tobytes() for picture in pictures]
        fresh = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self._recent}
        if fresh:
            found = self.senses.look([Image(picture) for picture in fresh.values()])
            self._recent |= dict(zip(fresh, found, strict=True))
        looked = torch.stack([self._recent[key] for key in keys])
        most = 2 * max(self.policy.config.window, len(keys)) * len(self.policy.config.cameras)
        while len(self._recent) > most:
            del self._recent[next(iter(self._recent))]
        return looked

    def _picture(self, values: Tensor) -> np.ndarray:
        """Pixels float [3, S, S] as the encoder reads them -> uint8 [S, S, 3]."""
        mean, std = (torch.tensor(one)[:, None, None] for one in (self.senses.pixels.mean, self.senses.pixels.std))
        return ((values * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()

    def save(self, folder: str | Path) -> None:
        """Write the model folder: policy/, and both encoders in vision/ and text/."""
        with atomic_folder(folder) as aside, quiet():
            self.policy.save_pretrained(aside / POLICY)
            save_senses(self.senses, aside / VISION, aside / TEXT)
            write_card(aside, KIND)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> Actor:
    """What `Actor.save` wrote, in evaluation mode.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, one of another kind or version, a part that is damaged, or parts that do not
            belong together.
    """
    folder = Path(folder)
    read_card(folder, KIND)
    with quiet():
        policy: Any = read_folder(folder / POLICY, GR1Policy, dtype, device)
    senses = read_senses(str(folder / VISION), str(folder / TEXT))
    for part in (senses.vision, senses.text):
        torch.nn.Module.to(part, policy.device)
    try:
        return Actor(policy, senses)
    except UserError as error:
        raise CheckpointError(f"{folder}: {error}") from None
