"""Free-running generation of words and pictures in one sequence (VL-GPT, inference).

When [IMG] is said, or stands at the end of a prompt, the regression head takes over for exactly N steps, each
predicted embedding being the next input; then [/IMG] is appended and the language head goes on. A model that was
trained on hidden pictures (`visual_input_dropout`) reads its mask in place of each embedding, and the picture once it
is whole.
Legend: B rows, L positions of the longest prompt, N embeddings a picture, d width, K rows that speak, V
words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.generate.cached import CachedDecoder
from tessera.generate.laid_out import laid_head
from tessera.generate.reply import Prompt, Reply, assemble
from tessera.generate.sampling import GREEDY, Sampling, choose
from tessera.models.vlgpt import VLGPTForConditionalGeneration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Images = Literal["forced", "allowed", "never"]
Side = Literal["left", "right"]
Listener = Callable[[int, int | Tensor], None]


@dataclass(slots=True)
class _Row:
    """One reply while it grows."""

    index: int  # its place among the prompts
    words_left: int
    pictures_left: int
    positions_left: int
    state: Literal["speaking", "drawing", "closing", "done"] = "speaking"
    ended: bool = False
    pieces: list[int | Tensor] = field(default_factory=list)
    embeds: list[Tensor] = field(default_factory=list)  # of the picture that is being drawn


def generate(
    model: VLGPTForConditionalGeneration,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    images: Images = "allowed",
    max_images: int = 1,
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    padding_side: Side = "left",
    on_piece: Listener | None = None,
) -> list[Reply]:
    """Continue every prompt, all of them in one batch.

    Args:
        max_new_tokens: words at most in one reply; pictures and their delimiters are not counted.
        images: "forced" begins each reply with a picture, "allowed" draws where the model says [IMG], "never"
            keeps it from saying so. A prompt that ends in [IMG] is always followed by a picture.
        max_images: pictures at most in one reply.
        sampling, generator: how words are taken; a temperature above 0 needs a generator with a seed.
        tokenizer: fills in the text of the replies.
        padding_side: where shorter prompts are padded; the replies are the same.
        on_piece: called with the place of the prompt and each new word (int) or finished picture [N, d] as
            they come. An exception that it raises stops the generation.

    Raises:
        UserError: no prompt, an empty prompt, one that leaves no room in the model's positions, or a limit
            below 0.
    """
    if not prompts or max_new_tokens < 0 or max_images < 0:
        raise UserError("generation needs at least one prompt, and limits that are 0 or more")
    start = model.config.image_start_id
    given = [torch.as_tensor(prompt.input_ids, device=model.device).long() for prompt in prompts]
    if images == "forced":
        given = [ids if len(ids) and ids[-1] == start else torch.cat([ids, ids.new_tensor([start])]) for ids in given]
    rows = [_Row(i, max_new_tokens, max_images, 0) for i in range(len(prompts))]
    for row, ids in zip(rows, given, strict=True):
        _open(row, ids, model)
        if images == "never":
            row.pictures_left = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            embeds = [prompt.image_embeds for prompt in prompts if prompt.image_embeds is not None]
            _Loop(model, rows, sampling, generator, on_piece).run(given, embeds, padding_side)
    finally:
        model.train(was_training)
    # Clones made outside inference mode may be trained on.
    pieces = [[x.clone() if isinstance(x, Tensor) else x for x in row.pieces] for row in rows]
    return [assemble(run, row.ended, tokenizer) for run, row in zip(pieces, rows, strict=True)]


def _open(row: _Row, ids: Tensor, model: VLGPTForConditionalGeneration) -> None:
    """Count the room after a prompt, and see whether a picture comes first."""
    config = model.config
    limit = config.text_config.max_position_embeddings
    row.positions_left = limit - len(ids)
    if not len(ids):
        raise UserError(f"prompt {row.index} is empty; begin it with the tokenizer's begin token")
    if ids[-1] == config.image_start_id:
        row.state, row.pictures_left = "drawing", row.pictures_left - 1
    needed = config.num_image_positions + 1 if row.state == "drawing" else 1
    if row.positions_left < needed:
        raise UserError(
            f"prompt {row.index} has {len(ids)} positions and its reply needs {needed} more, but the model reads"
            f" {limit}; shorten the prompt or give fewer pictures"
        )
    if row.state == "speaking" and not row.words_left:
        row.state = "done"


class _Loop:
    """One forward step for all rows, then each row's next input by its own state, until all are done."""

    def __init__(
        self,
        model: VLGPTForConditionalGeneration,
        rows: list[_Row],
        sampling: Sampling,
        generator: torch.Generator | None,
        on_piece: Listener | None,
    ) -> None:
        end = model.config.text_config.eos_token_id
        self.model, self.config, self.rows = model, model.config, rows
        self.sampling, self.generator, self.on_piece = sampling, generator, on_piece
        self.head = laid_head(model.get_output_embeddings())
        self.ends = set(end if isinstance(end, list) else [end])
        self.marks = {self.config.image_start_id, self.config.image_end_id, self.config.image_placeholder_id}
        inside = [mark for mark in self.marks if mark < self.config.text_config.vocab_size]
        self.banned = torch.tensor(inside, dtype=torch.long, device=model.device)  # where none of them may be said

    def run(self, prompts: list[Tensor], pictures: list[Tensor], side: Side) -> None:
        """Read the prompts, ids [l] each with pictures [m, N, d], and write every row to its end."""
        ids, readable, lengths = _pad(prompts, side)
        embeds = self.model.embed(ids, torch.cat(pictures) if pictures else None)
        picture = self.config.num_image_positions + 2
        steps = max(row.words_left + picture * (row.pictures_left + 1) for row in self.rows)
        decoder = CachedDecoder(self.model.language_model.model, len(ids), ids.shape[1] + steps)
        positions = (readable.long().cumsum(1) - 1).clamp_min(0)
        last = readable.long().mul(torch.arange(ids.shape[1], device=ids.device)).argmax(1)
        hidden = decoder.run(embeds, positions, readable, last)[:, 0]
        places, rows = lengths[:, None], self.rows
        while True:
            if all(row.state == "drawing" and not row.embeds for row in rows) and self.model.visual_mask is not None:
                hidden, places = self._draw_behind_masks(decoder, rows, hidden, places)
            inputs = self._next_inputs(rows, hidden)
            alive = [i for i, row in enumerate(rows) if row.state != "done"]
            if not alive:
                return
            if 2 * len(alive) <= len(rows):  # copying the cache pays once half of it is for nothing
                decoder.keep(alive)
                rows, inputs, places = [rows[i] for i in alive], inputs[alive], places[alive]
            hidden = self._read(decoder, rows, inputs, places)
            places = places + 1

    def _read(self, decoder: CachedDecoder, rows: list[_Row], inputs: Tensor, places: Tensor) -> Tensor:
        """Last hidden states [B, d] after each row's next input [B, d] at its place [B, 1]."""
        hidden = decoder.run(inputs[:, None], places)[:, 0]
        whole = [i for i, row in enumerate(rows) if row.state == "closing"]
        if whole and self.model.visual_mask is not None:  # masks stand where the picture is to be read
            pictures = torch.stack([picture for i in whole if isinstance(picture := rows[i].pieces[-1], Tensor)])
            before = torch.arange(1 - pictures.shape[1], 1, device=places.device)
            read = self.model.read_embeds(pictures)
            hidden[whole] = decoder.again(whole, read, places[whole] + before)[:, -1]
        return hidden

    def _draw_behind_masks(
        self, decoder: CachedDecoder, rows: list[_Row], hidden: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All embeddings but the last of rows that begin a picture: masks, which are known, stand for what is drawn, so
        that one pass reads them all. Gives the last hidden states [B, d] and the next places [B, 1]."""
        masks = self._masks()[:-1]
        number = len(masks)
        if not number:
            return hidden, places
        ahead = torch.arange(number, device=places.device)
        states = decoder.run(masks.expand(len(rows), -1, -1), places + ahead)
        predicted = self.model.regression_head(torch.cat([hidden[:, None], states[:, :-1]], dim=1))
        for row, embeds in zip(rows, predicted, strict=True):
            row.embeds += embeds
            row.positions_left -= number
        return states[:, -1], places + number

    def _masks(self) -> Tensor:
        """What stands for the embeddings of a picture [N, d] while it is drawn."""
        assert self.model.visual_mask is not None
        return self.model.visual_mask.weight

    def _next_inputs(self, rows: list[_Row], hidden: Tensor) -> Tensor:
        """Last hidden states [B, d] -> what each row reads next [B, d]; rows that are done read zeros."""
        drawing = [i for i, row in enumerate(rows) if row.state == "drawing"]
        speaking = [i for i, row in enumerate(rows) if row.state in ("speaking", "closing")]
        everyone = len(speaking) == len(rows)
        inputs = hidden if everyone else torch.zeros_like(hidden)
        if drawing:
            predicted = self.model.regression_head(hidden[drawing])
            for i, embedding in zip(drawing, predicted, strict=True):
                place = len(rows[i].embeds)
                self._draw(rows[i], embedding)
                inputs[i] = self._read_drawn(embedding, place)
        if speaking:
            words = self._words([rows[i] for i in speaking], hidden if everyone else hidden[speaking])
            said = words.tolist()
            read = self._embed(words, said)
            if everyone:
                inputs = read
            else:
                inputs[speaking] = read
            for i, word in zip(speaking, said, strict=True):
                self._say(rows[i], word)
        for row in rows:
            row.positions_left -= 1
            if row.positions_left < 0 and row.state != "done":
                row.state = "done"
        return inputs

    def _words(self, rows: list[_Row], hidden: Tensor) -> Tensor:
        """The next word int64 [K] of rows that speak, from hidden states [K, d]."""
        start, stop = self.config.image_start_id, self.config.image_end_id
        closes = [row.state == "closing" for row in rows]
        if self.config.force_image_end and all(closes):
            return torch.full((len(rows),), stop, device=hidden.device)
        scores = self.head(hidden).float()
        room = self.config.num_image_positions + 2
        full = [row.pictures_left <= 0 or row.positions_left < room for row in rows]
        if all(full) and not any(closes):  # the marks of a picture need not be scored
            return choose(scores.index_fill_(1, self.banned, -torch.inf), self.sampling, self.generator)
        closing = torch.tensor(closes, device=hidden.device)
        if self.model.image_token_rows is not None:
            scores = self.model.image_token_rows.extend(hidden, scores)
        if self.config.image_placeholder_id < scores.shape[-1]:
            scores[:, self.config.image_placeholder_id] = -torch.inf
        scores[:, stop].masked_fill_(~closing, -torch.inf)  # never said where no picture is open
        scores[:, start].masked_fill_(torch.tensor(full, device=scores.device), -torch.inf)
        words = choose(scores, self.sampling, self.generator)
        return words.masked_fill(closing, stop) if self.config.force_image_end else words

    def _embed(self, words: Tensor, said: list[int]) -> Tensor:
        """Words int64 [K] and the same as a list -> [K, d]; rows of marks are only looked up where there are some."""
        if self.marks.isdisjoint(said):
            return self.model.get_input_embeddings()(words)
        return self.model.embed_tokens(words)

    def _read_drawn(self, embedding: Tensor, place: int) -> Tensor:
        """What is read [d] of an embedding [d] that was drawn at `place` of a picture; masks until it is whole."""
        if self.model.visual_mask is not None:
            return self._masks()[place]
        return self.model.read_embeds(embedding[None], place)[0]

    def _draw(self, row: _Row, embedding: Tensor) -> None:
        row.embeds.append(embedding)
        if len(row.embeds) < self.config.num_image_positions:
            return
        self._add(row, torch.stack(row.embeds))
        row.embeds = []
        row.state = "closing" if row.words_left else "done"

    def _say(self, row: _Row, word: int) -> None:
        row.state = "speaking"
        if word in self.ends:
            row.state, row.ended = "done", True
        elif word == self.config.image_start_id:
            row.state, row.pictures_left = "drawing", row.pictures_left - 1
        elif word != self.config.image_end_id:
            row.words_left -= 1
            self._add(row, word)
            if not row.words_left:
                row.state = "done"

    def _add(self, row: _Row, piece: int | Tensor) -> None:
        row.pieces.append(piece)
        if self.on_piece is not None:
            self.on_piece(row.index, piece)


def _pad(prompts: list[Tensor], side: Side) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of several lengths -> ids int64 [B, L], readable bool [B, L] (False for padding), lengths [B]."""
    lengths = torch.tensor([len(ids) for ids in prompts], device=prompts[0].device)
    longest = int(lengths.max())
    index = torch.arange(longest, device=lengths.device)
    readable = index < lengths[:, None] if side == "right" else index >= longest - lengths[:, None]
    ids = torch.zeros(readable.shape, dtype=torch.long, device=lengths.device)
    ids[readable] = torch.cat(prompts)
    return ids, readable, lengths
