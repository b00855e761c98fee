"""Fourier-VLM: Compressing Vision Tokens in the Frequency Domain for Large Vision-Language Models (2508.06038).

The grid of an image encoder's tokens is taken for a small picture of many channels: its two-dimensional DCT, the lowest
frequencies of it, and the way back at their size. The smaller grid goes through the connector as the whole one did. The
reducer is `tessera.reduce.grids.DCT`, its place `tessera.models.lvlm.slot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from tessera.errors import UserError, nearest
from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration
from tessera.models.lvlm.slot import Slot
from tessera.papers.figures import Figure
from tessera.papers.fourier_vlm_study import headline
from tessera.papers.registry import Paper, paper
from tessera.reduce.maps import Map
from tessera.reduce.registry import create
from tessera.study.counting import count, macs, prefill
from tessera.study.design import Study

ALL, SIDE = 576, 24  # tokens of CLIP ViT-L/14 at 336 pixels
SIDES = {side**2: side for side in (16, 12, 8, 6, 5, 4, 3, 2)}  # tokens kept -> side of the kept block
WORDS = (35, 50, 68)
# FLOPs of the prefill, two for a multiply-add, with so many words beside the tokens, and per cent fewer than with all.
PREFILL = {
    576: (("8.27T", "8.48T", "8.73T"), None),
    144: (("2.38T", "2.58T", "2.83T"), ("71.2", "69.5", "67.6")),
    64: (("1.31T", "1.51T", "1.75T"), ("84.1", "82.2", "79.9")),
    36: (("0.94T", "1.14T", "1.38T"), ("88.6", "86.5", "84.2")),
}
RATIOS = {256: "2.25", 144: "4", 64: "9", 36: "16", 25: "23", 16: "36", 9: "64", 4: "144"}
QWEN, RATIO = "qwen2-vl", 2 / 3
QWEN_GRIDS = ((36, 24), (3, 7), (1, 1))  # after the merger of 2 x 2 patches
FEWER = "fewer FLOPs than with 576 tokens, per cent"


def llava(tokens: int) -> str:
    """The variant's name."""
    return f"llava-1.5-7b-{tokens}"


@paper("fourier-vlm")
class FourierVLM(Paper):
    """The grid of visual tokens passes a low-pass filter and shrinks before the language model reads it."""

    variants = (llava(ALL), *map(llava, SIDES), QWEN)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        return {
            "parts": [
                "DCT of the grid, orthonormal, of each channel; the lowest block; the way back at its size",
                "one matrix a side with orthonormal rows: as the FFT, and cheaper at these sizes",
                "before the connector, in fp32; the class token is left out, every tile by itself",
                "a kept side above the grid's leaves the grid as it is",
                "no parameters: reducer=dct with keep_side or keep_ratio in any language model with eyes",
            ],
            "options": [
                "norm: orthonormal as published; none, the other form of the official code; mean, which keeps a"
                " constant what it is, for models that are not trained with it",
                "coefficients: the kept frequencies themselves as tokens, without the way back",
            ],
            "claims": [
                "LLaVA-1.5: up to 83.8 % fewer FLOPs and 31.2 % faster generation (abstract), more than 96 % of the"
                " accuracy kept (third version); of how many tokens is not said: 64 with some 37 words, or 36 with"
                " some 70, cost so much less",
                "trained by others (Braco, 8 benchmarks, share of what 576 tokens reach): 25 tokens 92.9 %, 16 tokens"
                " 90.3 %, 9 tokens 88.5 %, 4 tokens 83.5 %",
            ],
            "of this library's making": [
                "the published training was not at hand; the settings of LLaVA-1.5, with the reducer in both stages,"
                " are what it is taken to be",
            ],
            "not built": [
                "Qwen2-VL itself: what is left of its grids is counted here; its rotary positions are not built",
                "the reducer behind the connector",
                "a training command of its own: the reducer is a field of any language model with eyes",
            ],
        }

    def figures(self) -> Sequence[Figure]:
        """Tokens, parameters and the counted cost of the prefill."""
        found = [
            Figure("CLIP ViT-L/14, 23 blocks, FLOPs", "0.366T", at="image encoder FLOPs", variant=llava(ALL)),
            Figure("24 to 12, multiply-adds", "10.6M", at="multiply-adds of the DCT", variant=llava(144)),
            Figure("parameters that it adds", "0", at="parameters / added", variant=llava(144)),
            Figure("3 x 7 tokens of Qwen-VL become", "2 x 4", at="left of a grid / 3 x 7", variant=QWEN),
        ]
        for tokens, ratio in RATIOS.items():
            name = f"side {SIDES[tokens]}"
            found.append(Figure(f"{name}, tokens", str(tokens), at="tokens", variant=llava(tokens)))
            found.append(Figure(f"{name}, ratio", ratio, at="ratio", variant=llava(tokens)))
        for tokens, (costs, saved) in PREFILL.items():
            rows = [("prefill FLOPs", cost) for cost in costs] + [(FEWER, share) for share in saved or ()]
            found += [
                Figure(f"{tokens} tokens, {words} words, {name}", printed, f"{name} / {words} words", llava(tokens))
                for (name, printed), words in zip(rows, WORDS * 2, strict=False)
            ]
        return found

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Tokens, parameters and FLOPs of LLaVA-1.5-7B at every budget, tokens of Qwen-VL; or one of them."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"fourier-vlm has no variant {variant!r}{nearest(variant, self.variants)}")
        return _qwen() if variant == QWEN else _llava(int(variant.rpartition("-")[2]))

    def study(self) -> Study:
        """The study of low-pass, pooling and random dropping at 4 and 9 tokens."""
        return headline()


def _llava(tokens: int) -> dict[str, Any]:
    fields: dict[str, Any] = {} if tokens == ALL else {"reducer": "dct", "keep_side": SIDES[tokens]}
    spent = 0
    with torch.device("meta"):
        model = LVLMForConditionalGeneration(LVLMConfig(**fields))
        if model.slot is not None:
            grid = torch.empty(1, ALL, model.vision.width)
            reduction = model.slot.reducer(grid, (SIDES[tokens],) * 2, grid=(SIDE, SIDE))
            spent = macs(_Applied(reduction.map), {"x": grid})
    total, left = count(model)["parameters"], model.num_image_tokens()
    own, seen = _uncompressed()
    costs = {words: (_vicuna(left + words), _vicuna(ALL + words)) for words in WORDS}
    return {
        "parameters": {"total": total, "added": total - own},
        "tokens": left,
        "ratio": ALL / left,
        "image encoder FLOPs": seen,
        "multiply-adds of the DCT": spent,
        "prefill FLOPs": {f"{words} words": ours for words, (ours, _) in costs.items()},
        FEWER: {f"{words} words": 100 * (1 - ours / full) for words, (ours, full) in costs.items()},
    }


@cache
def _vicuna(positions: int) -> int:
    """FLOPs of the prefill of Vicuna-7B."""
    return prefill(LVLMConfig().text_config, positions)


@cache
def _uncompressed() -> tuple[int | float, int]:
    """Parameters of LLaVA-1.5-7B, and FLOPs of the part of its encoder that it reads."""
    config = LVLMConfig()
    with torch.device("meta"):
        encoder = AutoModel.from_config(_without_last_block(config.vision_config))
        seen = macs(encoder, {"pixel_values": torch.empty(1, 3, 336, 336)})
        return count(LVLMForConditionalGeneration(config))["parameters"], 2 * seen


def _without_last_block(vision: Any) -> Any:
    """LLaVA-1.5 reads the last block but one."""
    given = vision.to_dict()
    inner = given["vision_config"]
    given["vision_config"] = {**inner, "num_hidden_layers": inner["num_hidden_layers"] - 1}
    return type(vision).from_dict(given)


class _Applied(nn.Module):
    def __init__(self, found: Map) -> None:
        super().__init__()
        self.found = found

    def forward(self, x: Tensor) -> Tensor:
        return self.found(x)


def _qwen() -> dict[str, Any]:
    slot = Slot(reducer=create("dct"), ratio=RATIO)
    left = {grid: slot.left(grid) for grid in QWEN_GRIDS}
    return {
        "parameters": {"added": 0},
        "left of a grid": {f"{h} x {w}": f"{rows} x {columns}" for (h, w), (rows, columns) in left.items()},
        "placeholders": {f"{h} x {w}": rows * columns for (h, w), (rows, columns) in left.items()},
    }
