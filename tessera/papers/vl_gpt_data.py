"""What each stage of VL-GPT reads: captioned pictures, interleaved running text, and dialogues."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tessera.data.loader import Loader, Samples
from tessera.data.mixture import Mixture
from tessera.data.packing import Batch, Packer, collate_rows, first_fit_decreasing
from tessera.data.quality import Opener
from tessera.data.sample import Image, Sample
from tessera.data.sequence import Sequence, SequenceBuilder, check_length
from tessera.data.source import Source, World
from tessera.data.tasks import INSTRUCTIONS, Mapped, draw, pair_order
from tessera.errors import BadSample, DataError, UserError

PAGES = 0.15  # share of interleaved pages among the sequences of stage B; the paper takes half of its tokens from them
LOOKED = 20  # samples of each source that are tried before training, at most
INSTRUCTION_SHARES = {"caption": 1.3, "question": 0.3, "edit": 0.2, "chat": 1.2}  # beside those to draw


@dataclass
class Streams:
    """Loaders of the three stages over the same worlds.

    Args:
        worlds: each with its share of the samples.
        positions: N, placeholders of a picture.

    Raises:
        UserError: no world has captioned pictures.
        DataError: a world is too small to be split, or what it holds cannot be read.
    """

    worlds: Seq[tuple[World, float]]
    tokenizer: PreTrainedTokenizerFast
    positions: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    builder: SequenceBuilder = field(init=False)
    opener: Opener = field(init=False, default_factory=Opener)

    def __post_init__(self) -> None:
        self.builder = SequenceBuilder(self.tokenizer, self.positions)
        self._pairs()
        for world, _ in self.worlds:
            for task in world.tasks:
                self._look(world.source(task))

    def _look(self, source: Source) -> None:
        """Raise DataError where none of some samples can be read: a later stage would stop on that, hours later."""
        last = ""
        for index in np.linspace(0, len(source) - 1, LOOKED).astype(int):
            try:
                self.opener(source[index].images)
                return
            except BadSample as error:
                last = str(error)
        raise DataError(f"{source.name} of {len(source)}: no sample that was tried can be used; the last: {last}")

    def captioned(self, batch: int) -> Loader[dict[str, list[Any]]]:
        """Stage A: `images` and, for each, in `sentences` the one whose text condition is its target.

        A world that knows a canonical sentence gives that one: were it drawn at random, the target would be no
        function of the picture.
        """

        def prepare(sample: Sample, rng: np.random.Generator) -> tuple[Image, str, str]:
            self.opener(sample.images)
            return sample.images[0], str(sample.meta.get("canonical", sample.text)), sample.id

        def collate(items: list[tuple[Image, str, str]]) -> dict[str, list[Any]]:
            images, sentences, names = zip(*items, strict=True)
            return {"images": list(images), "sentences": list(sentences), "sample_ids": list(names)}

        return self._loader(self._pairs(), Samples(prepare, collate, batch))

    def pretraining(self, rows: int, row_length: int) -> Loader[Batch]:
        """Stage B: pairs in both orders, and interleaved pages, packed."""
        parts = [(Mapped(source, pair_order), share) for source, share in self._pairs()]
        for world, share in self.worlds:
            if "pages" in world.tasks:
                parts.append((world.source("pages"), share * PAGES / (1 - PAGES)))  # type: ignore[arg-type]
        return self._packed(parts, rows, row_length)

    def drawings(self, pictures: int, rows: int, row_length: int) -> Iterator[Batch]:
        """Dialogues in which a picture is asked for, packed: of a world that has them its drawings, which show what
        they were asked for and nothing else, and of others their captioned pictures.

        So are generators of images tuned last, on few pictures that are chosen well (Emu, Dai et al. 2023): a
        regression that meets every background foresees the mean of all.
        """
        parts = [
            (world.source("drawings" if "drawings" in world.tasks else "pairs"), share)
            for world, share in self.worlds
            if "pairs" in world.tasks
        ]

        def prepare(sample: Sample, rng: np.random.Generator) -> Sequence:
            self.opener(sample.images)
            sequence = self.builder.build(draw(sample, rng))
            check_length(len(sequence), row_length)
            return sequence

        asked = next(iter(self._loader(parts, Samples(prepare, list, pictures))))
        packed = first_fit_decreasing([len(sequence) for sequence in asked], row_length)
        for first in range(0, len(packed), rows):
            part = [[asked[index] for index in row] for row in packed[first : first + rows]]
            yield collate_rows(part, row_length, self.tokenizer.pad_token_id or 0)

    def instructions(self, rows: int, row_length: int, draw_share: float) -> Loader[Batch]:
        """Stage C: captions, drawings, questions, edits and conversations as dialogues, packed.

        Args:
            draw_share: weight of requests to draw beside INSTRUCTION_SHARES.
        """
        shares, parts = {**INSTRUCTION_SHARES, "draw": draw_share}, []
        for world, share in self.worlds:
            asked = [
                (Mapped(world.source(task), instruct), shares[name])
                for task in world.tasks
                for name, instruct, _ in INSTRUCTIONS.get(task, ())
            ]
            total = sum(weight for _, weight in asked)
            parts += [(source, share * weight / total) for source, weight in asked]
        if not parts:
            raise UserError("the data have nothing to instruct with: no pairs, questions, edits or conversations")
        return self._packed(parts, rows, row_length)

    def heldout_pair(self, index: int) -> Sample:
        """A held-out captioned picture of the first world that has some."""
        source = next(world.source("pairs", "heldout") for world, _ in self.worlds if "pairs" in world.tasks)
        for place in range(index, index + len(source)):
            with contextlib.suppress(BadSample):
                sample = source[place % len(source)]
                self.opener(sample.images)
                return sample
        raise DataError(f"{source.name}: not one of {len(source)} samples can be read")

    def _pairs(self) -> list[tuple[Any, float]]:
        parts = [(world.source("pairs"), share) for world, share in self.worlds if "pairs" in world.tasks]
        if not parts:
            raise UserError("the data have no captioned pictures, which the image tokenizer is trained on")
        return parts

    def _packed(self, parts: list[tuple[Any, float]], rows: int, row_length: int) -> Loader[Batch]:
        pad = self.tokenizer.pad_token_id or 0
        return self._loader(parts, Packer(self.builder, rows, row_length, pad_id=pad, opener=self.opener))

    def _loader(self, parts: list[tuple[Any, float]], batcher: Any) -> Loader[Any]:
        return Loader(
            Mixture(parts), batcher, seed=self.seed, rank=self.rank, world_size=self.world_size, workers=self.workers
        )
