"""The plain vision transformer with fewer tokens in its later blocks: any token reducer between the attention and the
MLP of some of them.

Weights and their names are those of the plain one; nothing is added, and nothing needs to be trained.

Legend: B pictures, N patches, M tokens that are left, C width.
"""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from tessera.errors import UserError, reason
from tessera.layers.encoder import EncoderBlock
from tessera.reduce.base import Reducer, Reduction, class_importance
from tessera.reduce.grids import nearest_places
from tessera.reduce.maps import take
from tessera.reduce.registry import create
from tessera.reduce.schedule import Schedule
from tessera.vision.base import VisionOutput
from tessera.vision.vit import PlainViT, PlainViTConfig


@strict
class ReducedViTConfig(PlainViTConfig):
    """A plain ViT's fields, and these.

    Args:
        reducer: a name of `tessera.reduce`.
        reducer_options: of it.
        reduce_blocks, keep, number, remove: see `Schedule`.
        proportional: add the logarithms of the tokens' sizes to the attention scores (Bolya et al. 2023).
        unreduce: put tokens back on the picture's grid at the end, each reading the outputs that it went into, or where
            the reducer drops it the nearest kept one on the grid, since a head that has only seen tokens can do nothing
            with zeros; else `tokens` are the M that are left, on a grid of 1 x M where they lie on none.
    """

    model_type = "tessera-vit-reduced"

    reducer: str = "column"
    reducer_options: dict[str, Any] | None = None
    reduce_blocks: list[int] | tuple[int, ...] = ()
    keep: float | int | list[float] | tuple[float, ...] | None = None
    number: int | list[int] | tuple[int, ...] | None = None
    remove: int | list[int] | tuple[int, ...] | None = None
    proportional: bool = True
    unreduce: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.schedule().places(self.num_hidden_layers)
        if not create(self.reducer, **self.reducer_options or {}).expands and self.unreduce:
            raise UserError(
                f"tokens that {self.reducer!r} made cannot be put back on the grid; take 'column', or not unreduce"
            )

    @classmethod
    def of(cls, plain: PlainViTConfig, **fields: Any) -> "ReducedViTConfig":
        """A plain ViT's configuration with these fields beside its own.

        Raises:
            UserError: a value of a wrong type; or as `Schedule` and `tessera.reduce.create`.
        """
        try:
            return cls(**{name: getattr(plain, name) for name in PlainViTConfig.__annotations__}, **fields)
        except StrictDataclassError as error:
            raise UserError(f"tokens cannot be reduced so: {reason(error)}") from error

    def schedule(self) -> Schedule:
        """Where tokens are reduced, and to how many."""
        return Schedule(blocks=self.reduce_blocks, keep=self.keep, number=self.number, remove=self.remove)


class Step:
    """One reduction of patches behind a class token, as `ReducingBlock` calls it.

    Attributes:
        reduction: of the last call.
    """

    def __init__(
        self, reducer: Reducer, number: int, sizes: Tensor | None, bias: Tensor | None, grid: tuple[int, int] | None
    ) -> None:
        self.reducer, self.number = reducer, number
        self.sizes, self.bias, self.grid = sizes, bias, grid
        self.reduction: Reduction | None = None

    def __call__(self, x: Tensor, q: Tensor, k: Tensor, scale: float | None) -> Tensor:
        """x [B, 1 + N, C] to [B, 1 + M, C]; the class token stays as it is.

        Args:
            q, k: [B, H, 1 + N, D], of the attention that x comes out of.
        """
        keys = k[:, :, 1:].mean(1) if "keys" in self.reducer.reads else None
        weights = class_importance(q[:, :, 0], k, self.bias, scale) if "importance" in self.reducer.reads else None
        self.reduction = self.reducer(
            x[:, 1:], self.number, keys=keys, importance=weights, sizes=self.sizes, grid=self.grid
        )
        return torch.cat([x[:, :1], self.reduction.tokens], 1)


class ReducingBlock(EncoderBlock):
    """The encoder block, with the same parameters, and room for a step between its attention and its MLP."""

    def forward(self, x: Tensor, bias: Tensor | None = None, step: Step | None = None) -> Tensor:
        """x [B, L, C], or fewer tokens after `step`; bias [B, L] is added to the scores of the keys."""
        q, k, v = self.attn.project(self.norm1(x))
        mask = None if bias is None else bias[:, None, None].to(q.dtype)
        x = x + self.drop_path(self.attn.read(q, k, v, mask))
        if step is not None:
            x = step(x, q, k, self.attn.scale)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ReducedViT(PlainViT):
    """A plain ViT in which some blocks leave fewer tokens. `pooled` is the class token, which is never reduced; hidden
    states have the tokens that each block leaves."""

    config: ReducedViTConfig
    config_class = ReducedViTConfig
    _no_split_modules = ["ReducingBlock"]
    block_class = ReducingBlock

    def __init__(self, config: ReducedViTConfig) -> None:
        super().__init__(config)
        self.reducer = create(config.reducer, **config.reducer_options or {})
        self.schedule = config.schedule()

    @classmethod
    def over(cls, model: PlainViT, **fields: Any) -> "ReducedViT":
        """A copy of a plain one, reduced or not, with its weights, in evaluation mode.

        Args:
            fields: of `ReducedViTConfig`, those beside a plain one's.

        Raises:
            UserError: as `ReducedViTConfig.of`.
        """
        reduced = cls(ReducedViTConfig.of(model.config, **fields))
        reduced.load_state_dict(model.state_dict())
        nn.Module.to(reduced, model.device, model.dtype)  # as model.to, whose own types a checker cannot follow
        return reduced.eval()

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> VisionOutput:
        """Pictures [B, channels, H, W], H and W multiples of the patch size.

        Raises:
            UserError: the schedule asks for more tokens than the picture has.
        """
        x, whole = self.embed(pixel_values)
        counts = self.schedule.counts(whole[0] * whole[1], len(self.blocks))
        grid: tuple[int, int] | None = whole
        sizes: Tensor | None = None
        bias: Tensor | None = None
        states, reductions = [], []
        for place, block in enumerate(self.blocks):
            step = None
            if counts.get(place, x.shape[1] - 1) < x.shape[1] - 1:
                step = Step(self.reducer, counts[place], sizes, bias, grid)
            x = block(x, bias, step)
            if step is not None and step.reduction is not None:
                reductions.append(step.reduction)
                sizes, grid = step.reduction.sizes, step.reduction.grid
                bias = self._bias(sizes)
            if output_hidden_states:
                states.append(x)
        x = self.norm(x)
        tokens = x[:, 1:]
        if self.config.unreduce:
            tokens, grid = self._put_back(tokens, reductions, whole), whole
        return VisionOutput(
            tokens, grid or (1, tokens.shape[1]), x[:, 0], tuple(states) if output_hidden_states else None
        )

    def _put_back(self, tokens: Tensor, reductions: Sequence[Reduction], grid: tuple[int, int]) -> Tensor:
        """Tokens [B, M, C] on the grid that the first reduction took them from, [B, N, C]."""
        if self.reducer.drops and reductions:
            first, *others = [one.centres for one in reductions if one.centres is not None]
            for centres in others:
                first = first.gather(1, centres)
            return take(tokens, nearest_places(first, grid))
        for reduction in reversed(reductions):
            tokens = reduction.expand(tokens)
        return tokens

    def _bias(self, sizes: Tensor) -> Tensor | None:
        """Logarithms of sizes [B, M] behind a 0 for the class token, [B, 1 + M]; None where they are not asked for."""
        if not self.config.proportional:
            return None
        return torch.cat([torch.zeros_like(sizes[:, :1]), sizes.clamp_min(torch.finfo(sizes.dtype).tiny).log()], 1)


AutoConfig.register(ReducedViTConfig.model_type, ReducedViTConfig)
AutoModel.register(ReducedViTConfig, ReducedViT)
