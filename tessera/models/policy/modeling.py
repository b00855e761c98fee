"""GR-1 (Wu et al. 2023, arXiv 2312.13139): a GPT reads a goal, states and pictures of the last steps; learned queries
ask it for the next action and for the pictures some steps ahead.

The encoders are frozen and stand outside: the policy reads their features.

Legend: B windows of T steps, C width of picture features, E of text features, N_p patch features of a picture,
N = h * w foreseen patches of D values, S numbers of a state, A of an action without the gripper's, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from tessera.connect.resampler import PerceiverResampler
from tessera.errors import UserError
from tessera.layers.causal import MaskedBlock
from tessera.layers.positions import PositionTable
from tessera.models.policy.configuration import GR1Config
from tessera.models.policy.foreseeing import PatchDecoder
from tessera.models.policy.masking import query_mask


class Seen(NamedTuple):
    """What a frozen encoder says of one camera's pictures: class tokens [B, T, C] and patches [B, T, N_p, C]."""

    token: Tensor
    patches: Tensor


@dataclass
class PolicyOutput(ModelOutput):
    """What each step decides and foresees.

    Attributes:
        arm: [B, T, A], in the network's own units (see `GR1Config.action_scale`); None where no action was asked for.
        gripper: [B, T], logits of its being open; None also without a gripper.
        patches: [B, T, N, D] for each camera that is seen, in order; None where pictures were not asked for.
    """

    arm: Tensor | None = None
    gripper: Tensor | None = None
    patches: tuple[Tensor, ...] | None = None


class _Camera(nn.Module):
    """Features of one camera as tokens, and the queries that ask for its future picture."""

    def __init__(self, config: GR1Config) -> None:
        super().__init__()
        self.patches = nn.Linear(config.vision_width, config.width)
        self.token = nn.Linear(config.vision_width, config.width)
        self.queries = nn.Embedding(config.latents + 1, config.width)


class _State(nn.Module):
    """A state [..., S] as one token [..., W]: the arm's numbers and the gripper's one-hot, each through a layer of its
    own, then both through one."""

    def __init__(self, config: GR1Config) -> None:
        super().__init__()
        width = config.width
        self.arm = nn.Linear(config.state_size - config.gripper, width)
        self.gripper = nn.Linear(2, width) if config.gripper else None
        self.both = nn.Linear(2 * width if config.gripper else width, width)

    def forward(self, state: Tensor) -> Tensor:
        if self.gripper is None:
            return self.both(self.arm(state))
        opened = state[..., -1:] > 0  # so that padding, 0, counts as closed, as published
        one_hot = torch.cat([~opened, opened], dim=-1).to(state.dtype)
        return self.both(torch.cat([self.arm(state[..., :-1]), self.gripper(one_hot)], dim=-1))


class _ActionHead(nn.Module):
    """Two layers without an activation between them, as published, then the arm and the gripper's logit."""

    def __init__(self, config: GR1Config) -> None:
        super().__init__()
        half = config.width // 2
        self.layers = nn.Sequential(nn.Linear(config.width, half), nn.Linear(half, half))
        self.arm = nn.Linear(half, config.action_size - config.gripper)
        self.gripper = nn.Linear(half, 1) if config.gripper else None
        self.no_muon = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.layers(x)
        return self.arm(x), None if self.gripper is None else self.gripper(x).squeeze(-1)


def _places(config: GR1Config) -> PositionTable:
    height, width = config.vision_grid
    return PositionTable((height, width), config.vision_width, extra=0, kind="sine2d")


class GR1Policy(PreTrainedModel):
    """Features of windows in, actions and future patches out. Whatever is not given is left out of the sequence: clips
    without a robot have no state, and one that only acts asks for no pictures."""

    config: GR1Config
    config_class = GR1Config
    main_input_name = "goal"
    _no_split_modules = ["MaskedBlock", "EncoderBlock"]
    supports_gradient_checkpointing = True

    def __init__(self, config: GR1Config) -> None:
        super().__init__(config)
        width = config.width
        self.goal = nn.Linear(config.text_width, width)
        self.state = _State(config)
        self.places = _places(config) if config.places else None
        self.resampler = PerceiverResampler(
            config.vision_width, config.latents, config.resampler_depth, config.resampler_heads,
            config.resampler_head_width,
        )  # fmt: skip
        self.cameras = nn.ModuleList(_Camera(config) for _ in config.cameras)
        self.time = nn.Embedding(config.window, width)
        self.embed_norm = nn.LayerNorm(width)
        self.action_query = nn.Embedding(1, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            MaskedBlock(width, config.heads, 4 * width, activation=config.activation, dropout=config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.action = _ActionHead(config)
        self.decoder = PatchDecoder(config)
        self._of_gpt = {id(layer) for layer in self.blocks.modules()}  # whose weights start as GPT-2's
        self.post_init()

    def forward(
        self, goal: Tensor, steps: Tensor, seen: Mapping[str, Seen], state: Tensor | None = None, *,
        act: bool = True, foresee: bool = True,
    ) -> PolicyOutput:  # fmt: skip
        """
        Args:
            goal: [B, E], of length 1.
            steps: bool [B, T], True where a step is no padding, which is on the right; T is at most the window.
            seen: what each camera saw; those that are not named are left out.
            state: [B, T, S] in the units of the world; None leaves it out.
            act, foresee: which queries are asked.

        Raises:
            UserError: more steps than the window, or an unknown camera.
        """
        chosen = self._chosen(steps, seen)
        inputs = self._inputs(goal, seen, state, chosen, steps.shape[1])
        queries = self._queries(chosen, inputs, act, foresee)
        asked = torch.cat(queries, dim=2) if queries else inputs[:, :, :0]
        x = self.embed_norm(torch.cat([inputs, asked], dim=2))
        states = self.run(x.flatten(1, 2), query_mask(steps, inputs.shape[2], asked.shape[2]))
        answers = states.unflatten(1, x.shape[1:3])[:, :, inputs.shape[2] :]
        found = list(answers.split([one.shape[2] for one in queries], dim=2)) if queries else []
        arm, gripper = self.action(found.pop(0).squeeze(2)) if act else (None, None)
        patches = tuple(self._foreseen(one) for one in found) if foresee else None
        return PolicyOutput(arm=arm, gripper=gripper, patches=patches)

    def run(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """The GPT alone: [B, L, W] with a mask as `MaskedBlock` takes it -> [B, L, W] after the last norm."""
        x = self.dropout(embeds)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def actions(self, output: PolicyOutput) -> Tensor:
        """What was decided, in the units of the world, [B, T, action_size]: a gripper is -1 or 1."""
        assert output.arm is not None
        mean, scale = self._units("action", output.arm)
        arm = output.arm * scale + mean
        if output.gripper is None:
            return arm
        opened = torch.where(output.gripper > 0, 1.0, -1.0)
        return torch.cat([arm, opened[..., None].to(arm.dtype)], dim=-1)

    def arm_targets(self, actions: Tensor) -> Tensor:
        """What `arm` is to be: actions [B, T, action_size] in the units of the world, without the gripper's number, in
        the network's own, [B, T, A]."""
        return self._own(actions, "action")[..., : self.config.action_size - self.config.gripper]

    def _own(self, values: Tensor, name: str) -> Tensor:
        """Numbers of the world [..., S] in the network's units; a gripper's, the last, stays as it is."""
        mean, scale = self._units(name, values)
        return torch.cat([(values[..., : len(mean)] - mean) / scale, values[..., len(mean) :]], dim=-1)

    def _units(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of "state" or "action", without the gripper's."""
        config = self.config
        size = getattr(config, f"{name}_size") - config.gripper
        given = getattr(config, f"{name}_mean") or [0.0] * size, getattr(config, f"{name}_scale") or [1.0] * size
        mean, scale = torch.tensor(given, dtype=like.dtype, device=like.device)
        return mean, scale

    def _chosen(self, steps: Tensor, seen: Mapping[str, Seen]) -> list[int]:
        names = list(self.config.cameras)
        if steps.shape[1] > self.config.window:
            raise UserError(f"{steps.shape[1]} steps are more than the window of {self.config.window}")
        for name in seen:
            if name not in names:
                raise UserError(f"the policy has no camera {name!r}; it has {', '.join(names)}")
        return [place for place, name in enumerate(names) if name in seen]

    def _inputs(
        self, goal: Tensor, seen: Mapping[str, Seen], state: Tensor | None, chosen: Sequence[int], length: int
    ) -> Tensor:
        """Input tokens [B, T, I, W]: goal, state, then of each camera the latents and the class token."""
        time = self.time.weight[:length]
        tokens = [(self.goal(goal)[:, None] + time)[:, :, None]]
        if state is not None:
            tokens.append((self.state(self._own(state, "state")) + time)[:, :, None])
        for place in chosen:
            camera, one = self.cameras[place], seen[self.config.cameras[place]]
            patches = one.patches.flatten(0, 1)
            if self.places is not None:
                patches = self.places(patches, self.places.grid)
            latents = self.resampler(patches).unflatten(0, one.patches.shape[:2])
            tokens.append(camera.patches(latents) + time[:, None])  # type: ignore[operator]
            tokens.append((camera.token(one.token) + time)[:, :, None])  # type: ignore[operator]
        return torch.cat(tokens, dim=2)

    def _queries(self, chosen: Sequence[int], like: Tensor, act: bool, foresee: bool) -> list[Tensor]:
        """Query tokens, the same at every step, each [B, T, Q, W]: that of the action first, then each camera's."""
        tables = [self.action_query] if act else []
        tables += [self.cameras[place].queries for place in chosen] if foresee else []  # type: ignore[misc]
        return [table.weight.expand(*like.shape[:2], -1, -1) for table in tables]

    def _foreseen(self, answers: Tensor) -> Tensor:
        return self.decoder(answers.flatten(0, 1)).unflatten(0, answers.shape[:2])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, PerceiverResampler):
            init.normal_(module.media)
        elif isinstance(module, PatchDecoder):
            init.zeros_(module.mask_token)
        elif isinstance(module, nn.Linear):
            if id(module) in self._of_gpt:
                init.normal_(module.weight, std=0.02)
                init.zeros_(module.bias)
            else:
                module.reset_parameters()
        else:
            super()._init_weights(module)


AutoModel.register(GR1Config, GR1Policy)
