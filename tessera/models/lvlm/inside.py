"""Fewer visual tokens inside a language model: behind its first layers a token reducer leaves some of each picture's,
and the layers that follow read a shorter run.

What is left stands where its centres stood, so that words keep their places, and earlier and later stay what they were;
words are untouched. Caches hold all tokens before the reducer and those left behind it, so that decoding goes on as
though all had been read anew. How important a token is, where a reducer asks, is how much the tokens of its own picture
attend to it in the last layer before the reducer: what is said later must not change the choice.

Legend: B rows, L positions of a pass, S of them that are left, P positions in the caches before the reducer, R in those
behind it, Q pictures in order row by row, E tokens of one before its grid, N tokens on the grid, M left of them, H
heads, D head width, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel

from tessera.connect.connectors import Grid
from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.layers.attention import heard_by
from tessera.models.lvlm.language import ready_mask
from tessera.models.lvlm.layers import at_door, decoder_of, on_leaving
from tessera.models.lvlm.slot import Slot
from tessera.reduce.base import Reduction, mean_importance
from tessera.reduce.maps import take

_LEFT = "tessera_left"  # on a cache: bool [B, R], which positions behind the reducer may be read


@dataclass(frozen=True, kw_only=True)
class Inside:
    """A reducer behind some layers of a language model.

    Args:
        layers: how many read all tokens.
        grid: of a picture's tokens, (h, w) with h * w = N.
        extra: E.
    """

    slot: Slot
    layers: int
    grid: Grid
    extra: int = 0

    @property
    def each(self) -> int:
        """E + N, the tokens of a picture before the reducer."""
        return self.extra + self.grid[0] * self.grid[1]

    @property
    def left(self) -> int:
        """E + M, those behind it."""
        grid = self.slot.left(self.grid)
        return self.extra + grid[0] * grid[1]

    def check(self, model: PreTrainedModel) -> None:
        """Try it on nothing.

        Raises:
            UserError: there are no such layers in `model`, they cannot be reached, or the reducer cannot do this here.
        """
        depth = len(decoder_of(model)[1])
        if not 0 < self.layers < depth:
            raise UserError(
                f"reduce_after is {self.layers}, and the language model has {depth} layers; give 1 to {depth - 1}, or"
                " leave it out for a reducer before the connector"
            )
        self._check_attention(model)
        try:
            nothing = torch.zeros(1, self.each - self.extra, device="cpu")
            self.slot.reduce(nothing[..., None], self.grid, nothing)
        except UserError as error:
            raise UserError(
                f"{self.slot.reducer.name!r} cannot stand inside the language model, behind a grid of {self.grid[0]} x"
                f" {self.grid[1]}: {error}"
            ) from error

    def check_tokens(self, number: int) -> None:
        """Raise UserError where a picture has another number of tokens than E + N."""
        if number != self.each:
            raise UserError(
                f"a picture takes {number} tokens, and those inside the language model are reduced from {self.each}, of"
                " the size that the encoder is made for; bring it to that size"
            )

    @contextmanager
    def within(
        self, model: PreTrainedModel, slots: Tensor | None, segments: Tensor, cache: Cache | None, begun: int
    ) -> Iterator[None]:
        """Within, `model` reads all tokens in its first layers and those left in the others. What comes out has L
        positions, zeros before the final norm where a token was taken away.

        Args:
            slots: bool [B, L], where pictures stand; None where it is not known.
            segments: int64 [B, P + L], the number of the sequence of each position, 0 for padding.
            cache: what `model` is given.
            begun: P.

        Raises:
            UserError: `slots` is None, or no whole pictures in each row; `model` looks back less far than to the first
                position; or, while it runs, its layers take what is not known here.
        """
        if slots is None:
            raise UserError(
                "inside this language model visual tokens are reduced, so give input_ids, which say where they stand,"
                " not inputs_embeds"
            )
        counts = slots.sum(1)
        if bool((counts % self.each).any()):
            raise UserError(
                f"a row has {int(counts[(counts % self.each) > 0][0])} placeholders, and a picture takes {self.each};"
                " whole pictures alone can be reduced inside the language model"
            )
        if self.left == self.each or not (bool(slots.any()) or hasattr(cache, _LEFT)):
            yield  # nothing is taken away
            return
        self._check_attention(model)
        window = getattr(model.config, "sliding_window", None)
        if window and segments.shape[1] > window:
            raise UserError(
                f"{segments.shape[1]} positions are more than the {window} that the layers of this"
                f" {model.config.model_type} look back; with a reducer inside they have to see all, so shorten the text"
            )
        with _Pass(self, model, slots, segments, begun).installed():
            yield

    def _check_attention(self, model: PreTrainedModel) -> None:
        reducer, how = self.slot.reducer, model.config._attn_implementation
        if "importance" in reducer.reads and how != ATTENTION:
            raise UserError(
                f"the reducer {reducer.name!r} asks how important tokens are, which the {how!r} attention of a"
                f" {model.config.model_type} does not say; take one that does not ask, such as 'tome' or 'pool'"
            )

    def places(self, found: Reduction) -> Tensor:
        """Where on the grid each output stands, int64 [Q, M]: at its centre, or where it has none evenly spread."""
        if found.centres is not None:
            return found.centres
        rows, columns = found.grid or (1, found.tokens.shape[1])
        height, width = self.grid if found.grid else (1, self.each - self.extra)
        device = found.tokens.device
        down, across = (
            (2 * torch.arange(kept, device=device) + 1) * side // (2 * kept)
            for kept, side in ((rows, height), (columns, width))
        )
        return (down[:, None] * width + across).flatten().expand(len(found.tokens), -1)


@dataclass
class _Pass:
    """One pass through the language model. From the reducer on:

    index: int64 [B, S], the positions that go on, in their order.
    own: bool [B, S], which of them may be read: rows of fewer are filled up.
    past: bool [B, R], likewise before them.
    """

    inside: Inside
    model: PreTrainedModel
    slots: Tensor
    segments: Tensor
    begun: int
    cache: Any = field(init=False)
    index: Tensor = field(init=False)
    own: Tensor = field(init=False)
    past: Tensor = field(init=False)
    masks: dict[int, Tensor | None] = field(default_factory=dict)
    heard: tuple[Tensor, Tensor] | None = None
    listens: bool = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within, the layers of the model have it at their doors."""
        first, layers = self.inside.layers, decoder_of(self.model)[1]
        asked = "importance" in self.inside.slot.reducer.reads
        with ExitStack() as stack, heard_by(self._hear) if asked else nullcontext():
            stack.callback(layers[first - 1].register_forward_pre_hook(self._listen).remove)
            for number, layer in enumerate(layers[first:], start=first):
                stack.callback(at_door(layer, lambda *given, number=number: self._enter(number, *given)).remove)
            stack.callback(on_leaving(layers[-1], self._leave).remove)
            yield

    def _listen(self, *_: Any) -> None:
        self.listens = True

    def _hear(self, q: Tensor, k: Tensor) -> None:
        if self.listens:
            self.heard = q.detach(), k.detach()

    def _enter(self, number: int, states: Tensor, named: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        if number == self.inside.layers:
            self.listens = False
            # As layers call it; the model makes one where the caller gave none and asked for it.
            self.cache = named.get("past_key_values", named.get("layer_past"))
            states = self._reduce(states)
        places = ("position_ids", "position_embeddings")
        moved = {name: self._moved(named[name]) for name in places if name in named}
        return states, {**named, **moved, "attention_mask": self._mask(number, states.dtype)}

    def _leave(self, states: Tensor) -> Tensor:
        """[B, S, d] to their places in [B, L, d]."""
        rows, length = self.slots.shape
        places = self.index[..., None].expand_as(states)
        return states.new_zeros(rows, length, states.shape[-1]).scatter(1, places, states * self.own[..., None])

    def _reduce(self, states: Tensor) -> Tensor:
        """[B, L, d] to [B, S, d], and what the layers behind need to know."""
        segments = self.segments[:, self.begun :]
        kept = segments > 0
        if bool(self.slots.any()):
            states, kept = self._reduced(states, kept)
        self.index = (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max().clamp_min(1))]
        self.own = kept.gather(1, self.index)
        self.past = self._before(len(states))
        if self.cache is not None:
            setattr(self.cache, _LEFT, torch.cat([self.past, self.own], 1))
        return take(states, self.index)

    def _reduced(self, states: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, L, d] with what is left of a picture where its centres stood, and which of them are kept."""
        inside = self.inside
        extra = inside.extra
        at = self.slots.nonzero().unflatten(0, (-1, inside.each))  # [Q, E + N, 2]
        pictures = states[self.slots].unflatten(0, (-1, inside.each))
        found = inside.slot.reduce(pictures[:, extra:], inside.grid, self._importance())
        assert found is not None
        order = inside.places(found).sort(1)
        stay = torch.cat([at[:, :extra], take(at[:, extra:], order.values)], 1)  # [Q, E + M, 2]
        made = take(found.tokens, order.indices).to(states.dtype)  # which autocast may have made shorter
        tokens = torch.cat([pictures[:, :extra], made], 1)
        rows, columns = stay.unbind(-1)
        yes = torch.ones((), dtype=torch.bool, device=kept.device)
        return states.index_put((rows, columns), tokens), (kept & ~self.slots).index_put((rows, columns), yes)

    def _importance(self) -> Tensor | None:
        """float32 [Q, N]; None where the reducer does not ask."""
        if self.heard is None:
            return None
        q, k = self.heard
        self.heard = None
        k = k[:, :, self.begun : self.begun + q.shape[2]].repeat_interleave(q.shape[1] // k.shape[1], 1)
        q, k = (
            one.transpose(1, 2)[self.slots].unflatten(0, (-1, self.inside.each))[:, self.inside.extra :].transpose(1, 2)
            for one in (q, k)
        )
        return mean_importance(q, k)

    def _before(self, rows: int) -> Tensor:
        """bool [B, R]."""
        length = 0 if self.cache is None else int(self.cache.get_seq_length(self.inside.layers))
        known = getattr(self.cache, _LEFT, None)
        past = self.segments[:, : self.begun] > 0 if known is None else known
        if rows % len(past):
            raise UserError(f"the cache is of {len(past)} rows, and {rows} are read; give each row its own cache")
        return past[:, :length].repeat_interleave(rows // len(past), 0)  # a search may have made each row several

    def _moved(self, given: Any) -> Any:
        """What belongs to L positions, [B or 1, L, ...], for those that go on."""
        if given is None:
            return None
        if not isinstance(given, Tensor):
            return tuple(map(self._moved, given))
        if given.shape[1] != self.slots.shape[1]:
            raise UserError(
                f"a {self.model.config.model_type} counts positions in a way that is not known here; take a LLaMA, OPT,"
                " GPT-2 or a like model"
            )
        rows = torch.arange(len(self.index), device=self.index.device)[:, None]
        return given.expand(len(rows), *given.shape[1:])[rows, self.index]

    def _mask(self, number: int, dtype: torch.dtype) -> Tensor | None:
        """As layer `number` takes it, [B, 1, S, T] with the T positions of its cache; None where causality is all."""
        size = self.own.shape[1]
        total = self.past.shape[1] + size
        width = total if self.cache is None else int(self.cache.get_mask_sizes(size, number)[0])
        if width not in self.masks:
            self.masks[width] = self._new_mask(size, total, width, dtype)
        return self.masks[width]

    def _new_mask(self, size: int, total: int, width: int, dtype: torch.dtype) -> Tensor | None:
        segments = self.segments[:, self.begun :].gather(1, self.index)
        plain = self.past.all() & self.own.all() & (segments == segments[:, :1]).all()
        alone = width == total and size in (1, total)  # one word behind others, or all at once
        if alone and self.model.config._attn_implementation == ATTENTION and bool(plain):
            return None
        same = (segments[:, :, None] == segments[:, None]) & self.own[:, None]
        # What fills a row up reads itself, so that no row of the mask is empty.
        own = same.tril() | torch.eye(size, dtype=torch.bool, device=same.device)
        mask = torch.cat([self.past[:, None].expand(-1, size, -1), own], -1)
        return ready_mask(self.model, F.pad(mask, (0, width - total))[:, None], dtype)


def sequences(mask: Any, segment_ids: Tensor | None, rows: int, total: int, device: torch.device) -> Tensor:
    """int64 [B, `total`]: the number of the sequence of each position, those in the cache first, 0 for padding.

    Args:
        mask: as the attention_mask of transformers' models: [B, P + L], 0 for padding; or ready, [B, 1, L, T], or a
            dictionary of such by kind of layer, as with a static cache; or None.
        segment_ids: [B, L], which are taken as they are.
    """
    if segment_ids is not None:
        return segment_ids
    if isinstance(mask, dict):
        mask = next((one for one in mask.values() if one is not None), None)
    if mask is None:
        return torch.ones(rows, total, dtype=torch.long, device=device)
    if mask.ndim == 4:  # the last position reads all that may be read; where it is added to the scores that is 0
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask == 0
    return mask[:, :total].expand(rows, -1).long()
