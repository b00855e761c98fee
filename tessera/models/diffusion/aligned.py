"""A start for a new painter in which every place already sees its own part of the picture condition.

Where things are takes a painter longer to learn than what they are. So the Resampler starts as a packer: token i
holds, side by side, what the four patches of block i say about their latents. And a U-Net position starts by reading
from its own block's token the part of its own patch: a head for each quarter of a block, which looks sharply in its
own quarter and evenly at all tokens elsewhere. No part is changed for it; maps start as ridge regressions that read
places and contents from what the maps are given.

Shape legend: Q = r x r tokens (blocks); N = s x s patches, s = 2 r; K = code channels; F = contents of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from torch import Tensor, nn

from tessera.layers.aligning import QUARTERS, quarters, ridge
from tessera.models.diffusion.painter import Painter
from tessera.models.diffusion.positions import cell_centres, sine_code

CODE = 16  # channels of the place code
# How strongly a query prefers its own place: neighbouring patches differ by about 2 units of code, blocks by 5.
SHARP_PATCH, SHARP_BLOCK = 4.0, 3.0
LOUD = 2.0  # how much louder what is meant is than what is shown, whose grain and background are most of it
NOISE = 0.3  # factor on what the U-Net hears of the noisy latents at the outset, so that places are heard above them


@torch.no_grad()
def align(painter: Painter, patch_states: Tensor, latents: Tensor, meant: Tensor | None = None, rank: int = 0) -> None:
    """Change the start of `painter` in place.

    Args:
        patch_states: [n, 1 + N, V], class token first, of n pictures.
        latents: [n, Z, h, w] of the same pictures.
        meant: [n, N, K], what else each patch is to say: what the latents show too, but say faintly.
        rank: contents of a patch that are given to it.
    """
    _align_resampler(painter, patch_states, latents, meant, rank)
    painter.unet.conv_in.weight[:, : painter.unet.config.out_channels] *= NOISE
    tokens = painter.image_condition(patch_states)
    text = painter.null_text.expand(len(latents), -1, -1)
    steps = painter.timesteps_at(torch.full((len(latents),), torch.inf))
    seen = _watch(painter, lambda: painter.predict(torch.randn_like(latents), steps, text, tokens))
    for name, states in seen.items():
        _align_attention(painter.unet.get_submodule(name), states, tokens)


def _align_resampler(painter: Painter, patch_states: Tensor, latents: Tensor, meant: Tensor | None, rank: int) -> None:
    projection = painter.image_projection
    block, queries = projection.layers[0], projection.latents.shape[1]
    attention, patches = block.attn, patch_states.shape[1] - 1
    nn.init.orthogonal_(projection.proj_in.weight)
    nn.init.zeros_(projection.proj_in.bias)
    nn.init.orthogonal_(projection.latents[0], gain=math.sqrt(projection.latents.shape[2]))  # as large as contents
    nn.init.zeros_(block.ff[1].net[2].weight)
    nn.init.eye_(projection.proj_out.weight)
    given: list[Tensor] = []
    hook = block.ln0.register_forward_hook(lambda module, inputs, output: given.append(output))
    painter.image_condition(patch_states)
    hook.remove()
    states, known = given[0], block.ln1(projection.latents[0])
    side = 2 * math.isqrt(queries)
    places = sine_code(cell_centres(side, side), CODE)
    # The class token and the queries themselves are keys too. They lie nowhere, and weigh as much as all patches.
    weight = math.sqrt(patches * len(states))
    keys = torch.cat([
        states[:, 1:].flatten(0, 1), states[:, 0] * math.sqrt(patches), known * (weight / math.sqrt(queries)),
    ])  # fmt: skip
    nowhere = keys.new_zeros(len(states) + queries, CODE)
    reader = ridge(keys, torch.cat([places.repeat(len(states), 1), nowhere]))
    side = math.isqrt(patches)
    contents = _contents(states[:, 1:], _under(latents, side), projection.proj_out.out_features // QUARTERS - rank)
    if meant is not None:
        contents = torch.cat([LOUD * _contents(states[:, 1:], meant, rank, power=0.5), contents])
    _pack(attention, known, places[quarters(math.isqrt(queries))], reader, contents)


def _under(latents: Tensor, side: int) -> Tensor:
    """The latents [n, Z, h, w] under each patch, [n, N, Z h w / N]."""
    cell = latents.shape[-1] // side
    return latents.unfold(2, cell, cell).unfold(3, cell, cell).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)


def _contents(states: Tensor, wanted: Tensor, number: int, power: float = 0.25) -> Tensor:
    """What patch states [n, N, C] say about what is `wanted` of them [n, N, K], in order of its energy, [F, C].

    Reduced-rank regression: the leading principal components of the best linear estimate. They are brought half way to
    whitened: fine detail is heard, and what latents hardly depend on is not the loudest; with a `power` of 0.5 all are
    equally loud.
    """
    said, wanted = ((each - each.mean(dim=(0, 1))).flatten(0, 1) for each in (states, wanted))
    best = ridge(said, wanted)  # [K, C]
    estimates = said @ best.T
    spread, basis = torch.linalg.eigh(estimates.T @ estimates / len(estimates))
    spread, basis = spread.flip(0)[:number], basis.flip(1)[:, :number]
    contents = (basis / spread.clamp(min=1e-6).pow(power)).T @ best
    return contents / (said @ contents.T).square().mean().sqrt()


def _pack(attention: Attention, known: Tensor, wanted: Tensor, reader: Tensor, contents: Tensor) -> None:
    """Let head h of query i read the contents of quarter h of block i, at the places `wanted` [Q, 4, K], and write
    them side by side."""
    width, part = attention.inner_dim // attention.heads, len(contents)
    nn.init.zeros_(attention.to_v.weight)
    nn.init.zeros_(attention.to_out[0].weight)
    for head in range(QUARTERS):
        start = head * width
        attention.to_k.weight[start : start + CODE] = reader
        # In double precision: in single its last digits differ from run to run, and a resumed run would refuse them.
        asked = torch.linalg.lstsq(known.double(), wanted[:, head].double()).solution.T.to(known.dtype)
        attention.to_q.weight[start : start + CODE] = SHARP_PATCH * math.sqrt(width) * asked
        attention.to_v.weight[start : start + part] = contents
        for row in range(part):
            attention.to_out[0].weight[head * part + row, start + row] = 1


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
    """Let the first four heads of a cross-attention each look, from its quarter of each block, at that block."""
    side, blocks = math.isqrt(states.shape[1]), math.isqrt(tokens.shape[1])
    centres = cell_centres(side, side)
    quarter = (centres * 2 * blocks).long() % 2
    codes = sine_code(centres, CODE)
    homes = sine_code(cell_centres(blocks, blocks), CODE).repeat(len(tokens), 1)
    key = ridge(tokens.flatten(0, 1), homes)
    width, part = attention.inner_dim // attention.heads, tokens.shape[2] // QUARTERS
    maps, values = attention.processor.to_k_ip[0], attention.processor.to_v_ip[0]
    heard = min(width, part)
    for head in range(min(QUARTERS, attention.heads)):
        start, mine = head * width, quarter[:, 0] * 2 + quarter[:, 1] == head
        query = ridge(states.flatten(0, 1), (codes * mine[:, None]).repeat(len(states), 1))
        attention.to_q.weight[start : start + CODE] = SHARP_BLOCK * math.sqrt(width) * query
        maps.weight[start : start + width] = 0
        maps.weight[start : start + CODE] = key
        values.weight[start : start + width] = 0
        values.weight[start : start + heard, head * part : head * part + heard] = torch.eye(heard)
