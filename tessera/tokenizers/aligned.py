"""A start for the causal image tokenizer in which every embedding already holds its own block of the picture.

Where things are takes learned queries longer to find than what they are. So embedding i starts as what the four
patches of block i say, side by side, of the image condition's token i, and the detokenizer starts by reading it back.
Only weights are set, by regressions on some pictures; what the rest of the embedding's channels hold, and all of the
text condition, is left to training. The embeddings stay causal.

Shape legend: n pictures, S patch features of width C, N = r x r embeddings, Q = N image-condition tokens of width Dv,
F = Dv / 4 contents of a patch, W inner width.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.layers.aligning import QUARTERS, affine, place_readers, quarters
from tessera.layers.decoder import CrossAttention, DecoderBlock, DecoderStack
from tessera.tokenizers.causal import CausalImageTokenizer, ImageDetokenizer

LOUD = 4.0  # how much louder a query's own name is than the contents beside it, so that norms hardly depend on these
SHARP = 0.3  # factor on log-likelihoods of places; without it the first gradients through attention vanish
CERTAIN = 7.0  # how much more the detokenizer likes a block's own embedding than any other


@torch.no_grad()
def aligned_start(
    tokenizer: CausalImageTokenizer, detokenizer: ImageDetokenizer, features: Tensor, target: Tensor
) -> None:
    """Change the start of both in place.

    Args:
        features: [n, S, C], with or without the class token before the patches.
        target: image condition [n, Q, Dv], whose token i belongs to block i.

    Raises:
        UserError: their sizes leave no room for it.
    """
    number, width = tokenizer.queries.shape
    contents = target.shape[2] // QUARTERS
    heads = _blocks(tokenizer.decoder)[0].cross_attention.heads
    _check(number, width, heads, features.shape[1], tuple(target.shape[1:]), tokenizer.out.out_features)
    for stack in (tokenizer.decoder, detokenizer.decoder):
        _silence(stack)
    tokenizer.queries.copy_(_names(number, width, QUARTERS * contents))
    detokenizer.queries[: target.shape[1]] = _names(number, width, QUARTERS * contents)
    _read_blocks(tokenizer, features, target)
    _read_embeddings(detokenizer, tokenizer(features), target)


def _check(number: int, width: int, heads: int, states: int, condition: tuple[int, ...], embed_width: int) -> None:
    tokens, channels = condition
    blocks = math.isqrt(number)
    patches = states - states % 2  # a class token makes it odd
    room = width >= channels + number and width // heads >= max(channels // QUARTERS, number)
    if (
        blocks * blocks != number or tokens != number or patches != QUARTERS * number or channels % QUARTERS
        or heads < QUARTERS or not room or embed_width != width
    ):  # fmt: skip
        raise UserError(
            f"an aligned start has no room in {number} embeddings of width {embed_width}, inner width {width} and"
            f" {heads} heads, for {patches} patches and a condition of {tokens} x {channels}; it needs as many"
            f" embeddings as condition tokens, a quarter of the patches, equal widths of at least {channels + tokens},"
            f" and four heads of at least {max(channels // QUARTERS, tokens)} channels; set aligned=0 to start from"
            " random weights"
        )


def _names(number: int, width: int, start: int) -> Tensor:
    """Queries [number, width] that are orthogonal to each other, and 0 in the first `start` channels."""
    names = torch.zeros(number, width)
    names[:, start:] = LOUD * math.sqrt(width - start) * nn.init.orthogonal_(torch.empty(number, width - start))
    return names


def _blocks(stack: DecoderStack) -> list[DecoderBlock]:
    return [cast(DecoderBlock, block) for block in stack.blocks]


def _silence(stack: DecoderStack) -> None:
    """Let nothing but the first cross-attention add to the stream at the outset."""
    for position, block in enumerate(_blocks(stack)):
        ends = [block.self_attention.out, block.mlp_out] + [block.cross_attention.out] * (position > 0)
        for end in ends:
            nn.init.zeros_(end.weight)
            nn.init.zeros_(end.bias)


def _read_blocks(tokenizer: CausalImageTokenizer, features: Tensor, target: Tensor) -> None:
    """Let head h of query i look at quarter h of block i, and write what it says of the condition."""
    block = _blocks(tokenizer.decoder)[0]
    attention = block.cross_attention
    number, width = tokenizer.queries.shape
    homes = quarters(math.isqrt(number))  # [N, 4]
    extra = features.shape[1] % 2
    readers, weight, bias = place_readers(features, min(width // attention.heads, features.shape[1] - 1))
    said = torch.empty(*features[:, extra:].shape[:2], target.shape[2] // QUARTERS)
    said[:, homes.flatten()] = target.unflatten(-1, (QUARTERS, -1)).flatten(1, 2)
    value = affine(features[:, extra:].flatten(0, 1), said.flatten(0, 1))
    known = torch.linalg.pinv(block.cross_norm(tokenizer.queries))
    _clear(attention)
    for head in range(QUARTERS):
        asked = (known @ readers[extra:][homes[:, head]]).T
        _set_head(attention, head, SHARP * asked, (weight, bias), value)
    nn.init.eye_(tokenizer.out.weight)
    nn.init.zeros_(tokenizer.out.bias)


def _read_embeddings(detokenizer: ImageDetokenizer, embeds: Tensor, target: Tensor) -> None:
    """Let image query i copy the contents of embedding i, and the image head turn them into the condition."""
    nn.init.eye_(detokenizer.inp.weight)
    nn.init.zeros_(detokenizer.inp.bias)
    block, (tokens, others) = _blocks(detokenizer.decoder)[0], detokenizer.banks
    attention = block.cross_attention
    contents = target.shape[2] // QUARTERS
    ones = torch.eye(tokens)
    key = affine(embeds.flatten(0, 1), ones.repeat(len(embeds), 1))
    # The queries of the text bank look at no embedding more than at another.
    wanted = torch.cat([ones, torch.zeros(others, tokens)])
    asked = (torch.linalg.pinv(block.cross_norm(detokenizer.queries)) @ wanted).T
    _clear(attention)
    copies = torch.eye(embeds.shape[2])
    for head in range(QUARTERS):
        mine = copies[head * contents : (head + 1) * contents]
        _set_head(attention, head, CERTAIN * asked, key, (mine, torch.zeros(contents)))
    queries = detokenizer.queries.expand(len(embeds), -1, -1)
    read = detokenizer.decoder(queries, detokenizer.inp(embeds))[:, :tokens]
    weight, bias = affine(read.flatten(0, 1), target.flatten(0, 1))
    detokenizer.image_head.weight.copy_(weight)
    detokenizer.image_head.bias.copy_(bias)


def _clear(attention: CrossAttention) -> None:
    for layer in (attention.q, attention.kv, attention.out):
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(attention.out.weight)


def _set_head(
    attention: CrossAttention, head: int, query: Tensor, key: tuple[Tensor, Tensor], value: tuple[Tensor, Tensor]
) -> None:
    """Set a head's maps: query [K, W], key [K, M] and value [F, M] with offsets; it writes F channels from F h on."""
    width = attention.q.out_features // attention.heads
    start, contents = head * width, len(value[0])
    values = attention.q.out_features + start
    attention.q.weight[start : start + width] = 0
    attention.q.weight[start : start + len(query)] = math.sqrt(width) * query
    attention.kv.weight[start : start + width] = 0
    attention.kv.weight[start : start + len(key[0])] = key[0]
    attention.kv.bias[start : start + len(key[1])] = key[1]
    attention.kv.weight[values : values + contents] = value[0]
    attention.kv.bias[values : values + contents] = value[1]
    rows = torch.arange(contents)
    attention.out.weight[head * contents + rows, start + rows] = 1
