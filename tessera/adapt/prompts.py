"""Learned prompts of a CLIP: which tokens are learned, in which layers, and how the two towers' prompts hang together.

One learner is MaPLe (Khattak et al. 2022, "Multi-modal Prompt Learning") and, by its options, each of its baselines.

Legend: n prompts before the words, m prompts behind the patches, J layers with prompts; text width C, vision width V,
joint width D; B pictures.
"""

# No `from __future__ import annotations` here: settings from the command line read the types of `Prompts`.
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import CLIPConfig

from tessera.errors import UserError, nearest

SPREAD = 0.02  # of prompts that start at no word


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Which prompts are learned.

    Args:
        text, text_depth: prompts in place of the first words, and in how many layers they are given anew. The first
            layer counts: depth 9 is the words' own and 8 deep sets.
        vision, vision_depth: prompts behind the patches, likewise.
        coupling: "each": those of the vision tower are linear functions of the text tower's, one function a layer;
            "shared": one function for all layers; "none": they are learned by themselves.
        conditional: a small network adds a function of the picture to the text prompts (CoCoOp).

    Raises:
        UserError: prompts without layers or layers without prompts; coupled towers that differ in either; conditional
            prompts without text prompts or in deep layers.
    """

    text: int = 0
    text_depth: int = 0
    vision: int = 0
    vision_depth: int = 0
    coupling: Literal["none", "each", "shared"] = "none"
    conditional: bool = False

    def __post_init__(self) -> None:
        towers = {"text": (self.text, self.text_depth), "vision": (self.vision, self.vision_depth)}
        for tower, (number, depth) in towers.items():
            if min(number, depth) < 0 or (number == 0) != (depth == 0):
                raise UserError(f"{number} {tower} prompts in {depth} layers make no sense; both are 0 or both above")
        if self.coupling not in ("none", "each", "shared"):
            raise UserError(
                f"prompts cannot be coupled by {self.coupling!r}{nearest(self.coupling, ['none', 'each', 'shared'])}"
            )
        if self.coupling != "none" and (not self.text or towers["text"] != towers["vision"]):
            raise UserError(
                "coupled prompts are as many, and as deep, in both towers;"
                f" {self.text} in {self.text_depth} layers and {self.vision} in {self.vision_depth} are not"
            )
        if self.conditional and (self.text_depth != 1 or self.vision):
            raise UserError("conditional prompts are those of the words alone; text_depth is 1 and vision 0")


# As the official configurations have them, for 12 layers in each tower.
METHODS = {
    "zero-shot": Prompts(),
    "coop": Prompts(text=16, text_depth=1),
    "cocoop": Prompts(text=4, text_depth=1, conditional=True),
    "vpt": Prompts(vision=8, vision_depth=12),
    "language": Prompts(text=4, text_depth=12),
    "ivlp": Prompts(text=2, text_depth=12, vision=2, vision_depth=12),
    "maple": Prompts(text=2, text_depth=9, vision=2, vision_depth=9, coupling="each"),
    "maple-shared": Prompts(text=2, text_depth=9, vision=2, vision_depth=9, coupling="shared"),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What prompts have to fit: widths and layers of a CLIP's towers, and the width of its joint space."""

    text_width: int
    vision_width: int
    text_layers: int
    vision_layers: int
    joint_width: int

    @classmethod
    def of(cls, config: CLIPConfig) -> "Sizes":
        """Those of a CLIP."""
        whole: Any = config
        text, vision = whole.text_config, whole.vision_config
        return cls(
            text_width=text.hidden_size, vision_width=vision.hidden_size, text_layers=text.num_hidden_layers,
            vision_layers=vision.num_hidden_layers, joint_width=whole.projection_dim,
        )  # fmt: skip


def prompts_of(method: str, sizes: Sizes, **changes: Any) -> Prompts:
    """The prompts of a published method in a CLIP of `sizes`: as deep as published, or as there are layers.

    Args:
        changes: fields of `Prompts` that differ.

    Raises:
        UserError: there is no such method, with the nearest; or as `Prompts`.
    """
    if method not in METHODS:
        raise UserError(f"there is no prompt method {method!r}{nearest(method, METHODS)}")
    known = METHODS[method]
    text, vision = min(known.text_depth, sizes.text_layers), min(known.vision_depth, sizes.vision_layers)
    if known.coupling != "none":
        text = vision = min(text, vision)
    return replace(known, **{"text_depth": text, "vision_depth": vision, **changes})


class PromptLearner(nn.Module):
    """The learned prompts of both towers, layer by layer.

    Args:
        words: [n, C] that the first layer's text prompts start at; None for random ones.

    Raises:
        UserError: prompts in more layers than there are.
    """

    def __init__(self, prompts: Prompts, sizes: Sizes, words: Tensor | None = None) -> None:
        super().__init__()
        depths = {
            "text": (prompts.text_depth, sizes.text_layers),
            "vision": (prompts.vision_depth, sizes.vision_layers),
        }
        for tower, (depth, layers) in depths.items():
            if depth > layers:
                raise UserError(f"prompts in {depth} layers do not fit the {layers} of this CLIP's {tower} tower")
        self.prompts, self.sizes = prompts, sizes
        self.text = _new(prompts.text_depth, prompts.text, sizes.text_width)
        if words is not None:
            with torch.no_grad():
                self.text[0].copy_(words)
        coupled = prompts.coupling != "none"
        self.vision = _new(0 if coupled else prompts.vision_depth, prompts.vision, sizes.vision_width)
        self.projections = nn.ModuleList(_projections(prompts, sizes))
        self.conditional: nn.Module | None = None
        if prompts.conditional:
            hidden = max(1, sizes.joint_width // 16)
            self.conditional = nn.Sequential(
                nn.Linear(sizes.joint_width, hidden), nn.ReLU(), nn.Linear(hidden, sizes.text_width)
            )

    def text_prompts(self, seen: Tensor | None = None) -> list[Tensor]:
        """Prompts [1, n, C] of each of the first J layers.

        Args:
            seen: unit vectors [B, D] of pictures; with them conditional prompts [B, n, C].
        """
        found = [prompt[None] for prompt in self.text]
        if self.conditional is not None:
            assert seen is not None
            found[0] = found[0] + self.conditional(seen.to(self.text[0].dtype))[:, None]
        return found

    def vision_prompts(self) -> list[Tensor]:
        """Prompts [1, m, V] of each of the first J layers."""
        if self.prompts.coupling == "none":
            return [prompt[None] for prompt in self.vision]
        projections = list(self.projections)
        if self.prompts.coupling == "shared":
            projections *= len(self.text)
        return [project(prompt)[None] for project, prompt in zip(projections, self.text, strict=True)]


def _new(depth: int, number: int, width: int) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(torch.randn(number, width) * SPREAD) for _ in range(depth)])


def _projections(prompts: Prompts, sizes: Sizes) -> Sequence[nn.Linear]:
    """One for each layer, the deep ones alike at the outset as in the official code; or one for all; or none."""
    if prompts.coupling == "none":
        return []
    first, deep = (nn.Linear(sizes.text_width, sizes.vision_width) for _ in range(2))
    if prompts.coupling == "shared":
        return [first]
    return [first, *(copy.deepcopy(deep) for _ in range(prompts.text_depth - 1))]
