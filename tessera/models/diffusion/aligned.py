"""A start for a new painter in which attention already looks at the right place.

Learning where things are takes a painter longer than learning what they are. So Resampler query i starts reading
block i of the patches, and U-Net positions start reading the tokens of their own block. No part is changed for it:
the maps to queries and keys start as the ridge regressions that read a sine code of the place from what these maps
are given.

Shape legend: Q = r x r picture tokens (blocks); N = s x s patches, s = 2 r; K = code channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from torch import Tensor, nn

from tessera.models.diffusion.painter import Painter
from tessera.models.diffusion.positions import cell_centres, sine_code

CODE = 16  # channels of the place code
# How strongly a query prefers its own place: neighbouring patches differ by about 2 units of code, blocks by 5.
SHARP_PATCH, SHARP_BLOCK = 2.0, 1.0


@torch.no_grad()
def align(painter: Painter, patch_states: Tensor, latents: Tensor) -> None:
    """Change the start of `painter` in place.

    Args:
        patch_states: [n, 1 + N, V], class token first, of n pictures.
        latents: [n, Z, h, w] of the same pictures.
    """
    _align_resampler(painter, patch_states)
    tokens = painter.image_condition(patch_states)
    text = painter.null_text.expand(len(latents), -1, -1)
    levels = torch.randn(len(latents))
    steps = painter.timesteps_at(levels)
    noisy = painter.scheduler.add_noise(latents, torch.randn_like(latents), steps)
    seen = _watch(painter, lambda: painter.predict(noisy, steps, text, tokens))
    for name, states in seen.items():
        _align_attention(painter.unet.get_submodule(name), states, tokens)


def _read_code(states: Tensor, codes: Tensor, strength: float = 3e-3) -> Tensor:
    """Ridge regression W [K, C] with states [n, C] W^T ~ codes [n, K]."""
    gram = states.T @ states
    gram.diagonal().add_(strength * gram.diagonal().mean())
    return torch.linalg.solve(gram, states.T @ codes).T


def _align_resampler(painter: Painter, patch_states: Tensor) -> None:
    projection = painter.image_projection
    block = projection.layers[0]
    attention, queries = block.attn, projection.latents.shape[1]
    side, patches = math.isqrt(queries), patch_states.shape[1] - 1
    nn.init.orthogonal_(projection.proj_in.weight)
    nn.init.zeros_(projection.proj_in.bias)
    nn.init.orthogonal_(projection.latents[0], gain=3.0)
    given: list[Tensor] = []
    hook = block.ln0.register_forward_hook(lambda module, inputs, output: given.append(output))
    painter.image_condition(patch_states)
    hook.remove()
    states = given[0]
    known = block.ln1(projection.latents[0])
    places = sine_code(cell_centres(2 * side, 2 * side), CODE)
    # The class token and the queries themselves are keys too. They lie nowhere, and weigh as much as all patches.
    weight = math.sqrt(patches * len(states))
    keys = torch.cat([
        states[:, 1:].flatten(0, 1), states[:, 0] * math.sqrt(patches), known * (weight / math.sqrt(queries)),
    ])  # fmt: skip
    nowhere = keys.new_zeros(len(states) + queries, CODE)
    reader = _read_code(keys, torch.cat([places.repeat(len(states), 1), nowhere]), strength=1e-3)
    width = attention.inner_dim // attention.heads
    grid = torch.arange(patches).view(side, 2, side, 2).permute(0, 2, 1, 3).reshape(queries, 4)
    for head in range(attention.heads):
        part = slice(head * width, head * width + CODE)
        wanted = places[grid[:, head % 4]]  # head h of query i reads the h-th patch of block i
        attention.to_k.weight[part] = reader
        attention.to_q.weight[part] = SHARP_PATCH * math.sqrt(width) * torch.linalg.lstsq(known, wanted).solution.T
    nn.init.orthogonal_(attention.to_v.weight)
    nn.init.orthogonal_(attention.to_out[0].weight)


def _watch(painter: Painter, run: Callable[[], object]) -> dict[str, Tensor]:
    """What each cross-attention of the U-Net is given while `run` runs, [n, positions, C]."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for key, processor in painter.unet.attn_processors.items():
        if isinstance(processor, IPAdapterAttnProcessor2_0):
            name = key.removesuffix(".processor")

            def keep(module: nn.Module, given: tuple, name: str = name) -> None:
                seen[name] = given[0]

            hooks.append(painter.unet.get_submodule(name).register_forward_pre_hook(keep))
    run()
    for hook in hooks:
        hook.remove()
    return seen


def _align_attention(attention: Attention, states: Tensor, tokens: Tensor) -> None:
    """Let half of the heads of one cross-attention (at least one) start looking at their own block."""
    side, blocks = math.isqrt(states.shape[1]), math.isqrt(tokens.shape[1])
    places = sine_code(cell_centres(side, side), CODE).repeat(len(states), 1)
    homes = sine_code(cell_centres(blocks, blocks), CODE).repeat(len(tokens), 1)
    query = _read_code(states.flatten(0, 1), places)
    key = _read_code(tokens.flatten(0, 1), homes)
    width = attention.inner_dim // attention.heads
    maps = attention.processor.to_k_ip[0]
    for head in range((attention.heads + 1) // 2):
        rows = slice(head * width, (head + 1) * width)
        maps.weight[rows] = 0
        part = slice(head * width, head * width + CODE)
        attention.to_q.weight[part] = SHARP_BLOCK * math.sqrt(width) * query
        maps.weight[part] = key
