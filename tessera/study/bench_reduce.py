"""Races of models with fewer tokens against the same models with all: time saved beside multiply-adds saved, where
they are used (a forward pass) and where they are trained (a backward pass after it).

Every reducer of `tessera.reduce` runs in DeiT-S, and inside a language model: one decoder layer reads 576 visual tokens
before its text, or what the reducer leaves of them behind the layer before, as `tessera.models.lvlm.inside` does. That
is a quarter, but for ToMe, which merges at most half in one step and so leaves half. Layers are alike, so that one
stands for all that read what is left. A layer of LLaVA-1.5-7B is raced in use with every reducer, in training, where a
round takes many seconds, with two of them; training with every reducer is raced in a layer of TinyLlama-1.1B.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from tessera.models.reduced_vit import ReducedViT
from tessera.reduce.base import Reducer, mean_importance
from tessera.reduce.registry import create
from tessera.study.bench import Race
from tessera.study.counting import macs
from tessera.vision.registry import create as create_backbone
from tessera.vision.vit import PlainViT

LEAST, AIM = 1.3, 1.5  # 0.65 of the tokens three times; the abstract of 2506.05709 says 1.5 times as fast
SHARE = 0.8  # of the counted gain that a language model's layer must reach
SIDE = 224
KEEP = 0.65
# Rows that sum to 1, as a model that was trained without them expects.
REDUCERS: dict[str, dict[str, Any]] = {
    "random": {}, "prune": {}, "evit": {}, "tome": {}, "nearest": {}, "pool": {}, "dct": {"norm": "mean"},
    "row": {}, "column": {}, "projection": {},
}  # fmt: skip
LAYERS = {
    "LLaVA-1.5-7B": LlamaConfig(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_hidden_layers=1),
    "TinyLlama-1.1B": LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_attention_heads=32, num_key_value_heads=4, num_hidden_layers=1
    ),
}
LARGE, SMALL = LAYERS
GRID, TEXT = (24, 24), 64  # visual tokens of CLIP ViT-L/14 at 336 pixels, words
LEFT, HALF = 144, {"tome": 288}
TRAINED = ("dct", "column")  # in the large layer: the cheapest to compute on a grid, and the paper's own
ROUNDS = 5  # of a layer


def _running(way: Callable[[], Tensor], model: nn.Module, device: torch.device, train: bool) -> Callable[[], Tensor]:
    """`way` as a race runs it: without gradients, or with those of all parameters of `model`."""

    def run() -> Tensor:
        with torch.set_grad_enabled(train), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = way()
        if train:
            model.zero_grad(set_to_none=True)
            found.float().square().mean().backward()
        return found

    return run


def _named(name: str, train: bool) -> str:
    return f"{name}, training" if train else name


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def vit_race(name: str, plain: PlainViT, pictures: Tensor, train: bool = False) -> Race:
    """A ViT with a reducer against the same without, on pictures [B, 3, H, W]."""
    fields: dict[str, Any] = {"reducer": name, "reducer_options": REDUCERS[name], "keep": KEEP}
    reduced = ReducedViT.over(plain, **fields)
    with torch.device("meta"):
        one = {"pixel_values": torch.empty(1, *pictures.shape[1:])}
        full = PlainViT(plain.config)
        costs = [macs(model, one) for model in (full, ReducedViT(reduced.config))]
    return Race(
        name=_named(f"{name}, keep {KEEP} x 3, {len(pictures)} x {pictures.shape[-1]}", train),
        peer="the same ViT with all tokens",
        ours=_running(lambda: reduced(pictures).pooled, reduced, pictures.device, train),
        theirs=_running(lambda: plain(pictures).pooled, plain, pictures.device, train),
        macs=float(costs[1] * len(pictures) * (3 if train else 1)),
        dtype=_dtype(pictures.device), least=LEAST, aim=AIM, counted=costs[0] / costs[1],
    )  # fmt: skip


class Layer(nn.Module):
    """One decoder layer over visual tokens, reduced to `left` of them where there is a reducer, and text after them."""

    def __init__(self, config: LlamaConfig, reducer: Reducer | None = None, left: int = LEFT) -> None:
        super().__init__()
        self.layer, self.rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)
        self.reducer, self.left = reducer, left

    def forward(self, visual: Tensor, text: Tensor, q: Tensor, k: Tensor, grid: tuple[int, int]) -> Tensor:
        """States of visual tokens [B, N, C] of a grid, which are compared by themselves, and of text [B, L, C].

        Args:
            q, k: [B, H, N, D], of the layer before, where a reducer asks how important tokens are.
        """
        if self.reducer is not None:
            importance = mean_importance(q, k) if "importance" in self.reducer.reads else None
            visual = self.reducer(visual, self.left, importance=importance, grid=grid).tokens
        hidden = torch.cat([visual, text], 1)
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]
        turned = self.rotary(hidden, places)
        found = self.layer(hidden, attention_mask=None, position_ids=places, position_embeddings=turned)
        return found[0] if isinstance(found, tuple) else found


def open_layer(name: str, device: torch.device) -> Layer:
    """One of LAYERS with new weights, without a reducer."""
    config = LAYERS[name]
    config._attn_implementation = "sdpa"
    return Layer(config).to(device, _dtype(device)).eval()


def layer_race(
    name: str, layer: str, full: Layer, grid: tuple[int, int] = GRID, left: int = LEFT, train: bool = False
) -> Race:
    """One layer with fewer visual tokens, the reduction included, against the same with all.

    In training states have gradients too, as layers before them learn.

    Args:
        full: `layer` of LAYERS, as `open_layer` gives it.
    """
    config, device = LAYERS[layer], next(full.parameters()).device
    ours = copy.copy(full)  # with the same weights
    ours.reducer, ours.left = create(name, **REDUCERS[name]), left
    tokens = grid[0] * grid[1]

    def inputs(place: torch.device) -> dict[str, Any]:
        heads = (config.num_attention_heads, tokens, config.hidden_size // config.num_attention_heads)
        sizes = {"visual": (tokens, config.hidden_size), "text": (TEXT, config.hidden_size), "q": heads, "k": heads}
        made = {key: torch.randn(1, *size, device=place, dtype=_dtype(device)) for key, size in sizes.items()}
        return {**made, "grid": grid}

    with torch.device("meta"):
        laid = [Layer(config), Layer(config, ours.reducer, left)]
        costs = [macs(model.to(_dtype(device)), inputs(torch.device("meta"))) for model in laid]
    given, counted = inputs(device), costs[0] / costs[1]
    for states in (given["visual"], given["text"]):
        states.requires_grad_(train)
    return Race(
        name=_named(f"{name}, {tokens} to {left} visual tokens, one layer of {layer}", train),
        peer="the same with all tokens",
        ours=_running(lambda: ours(**given), ours, device, train),
        theirs=_running(lambda: full(**given), full, device, train),
        macs=float(costs[1] * (3 if train else 1)), dtype=_dtype(device), least=SHARE * counted, aim=counted,
        counted=counted, rounds=ROUNDS,
    )  # fmt: skip


def races(device: torch.device) -> Iterator[Race]:
    """Every reducer in DeiT-S, then in a language model's layers; each in use and in training."""
    plain = create_backbone("vit-s16").eval()
    nn.Module.to(plain, device)  # as model.to, whose own types a checker cannot follow
    assert isinstance(plain, PlainViT)
    pictures = torch.randn(64 if device.type == "cuda" else 8, 3, SIDE, SIDE, device=device)
    for name in REDUCERS:
        for train in (False, True):
            yield vit_race(name, plain, pictures, train)
    del plain
    full = open_layer(LARGE, device)
    for name in REDUCERS:
        yield layer_race(name, LARGE, full, left=HALF.get(name, LEFT))
    for name in TRAINED:
        yield layer_race(name, LARGE, full, left=HALF.get(name, LEFT), train=True)
    full = open_layer(SMALL, device)
    for name in REDUCERS:
        yield layer_race(name, SMALL, full, left=HALF.get(name, LEFT), train=True)
