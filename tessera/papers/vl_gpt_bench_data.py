"""Races of reading: samples out of tar files against webdataset with Pillow, and what a training step waits for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from operator import truediv
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image as PIL
from transformers import PreTrainedTokenizerFast

from tessera.data.images import Pixels
from tessera.data.loader import Loader
from tessera.data.packing import Batch, Packer
from tessera.data.sample import Image
from tessera.data.sequence import SequenceBuilder
from tessera.data.worlds import open_world
from tessera.data.worlds.export import write_shards
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.papers.registry import TrainOptions
from tessera.papers.vl_gpt import MINI, Run
from tessera.papers.vl_gpt_data import Streams
from tessera.study.bench import Measure, Race
from tessera.train.memory import kept, unwatched
from tessera.train.parallel import open_accelerator
from tessera.train.select import choose_precision, has_fast_bf16, set_trainable, to_device
from tessera.train.step import StepModule, gradients, norm_of_gradient, update
from tessera.zoo.foundation import load_mini
from tessera.zoo.parts import load_tokenizer, quiet

SAMPLES = 1024  # that a run reads, about
WRITTEN = 12800  # in the tar file: more than all rounds of training take, so that no picture is read twice
ROWS, ROW_LENGTH, POSITIONS = 8, 256, 16
PIXELS = Pixels(64)
HELD = 6  # batches that both sides learn from, again and again
STEPS = 24  # of a run: the loader reads 256 samples ahead, and some of every six steps wait for that
RATE = 0.5  # of the highest learning rate
WAITS = (0.05, 0.01)  # of a step


def packed(shards: str, tokenizer: PreTrainedTokenizerFast, samples: int) -> list[Batch]:
    """Batches of packed rows with their pictures decoded, until they hold `samples` samples."""
    world = open_world(shards)
    packer = Packer(SequenceBuilder(tokenizer, POSITIONS), ROWS, ROW_LENGTH, pixels=PIXELS)
    found, number = [], 0
    for batch in Loader(world.source("pairs"), packer):
        found.append(batch)
        number += sum(map(len, batch.sample_ids))
        if number >= samples:
            break
    return found


def padded(shards: str, tokenizer: PreTrainedTokenizerFast, samples: int, together: int = 32) -> list[dict[str, Any]]:
    """The same by webdataset, Pillow and a tokenizer: batches of sentences padded to the longest, and pictures."""
    import webdataset

    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (PIXELS.mean, PIXELS.std))

    def pixels(image: PIL.Image) -> torch.Tensor:
        small = image.resize((PIXELS.size, PIXELS.size), PIL.Resampling.BICUBIC)
        return torch.from_numpy((np.asarray(small, np.float32).transpose(2, 0, 1) / 255 - mean) / std)

    data = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).repeat()
    read = islice(data.decode("pilrgb").to_tuple("png", "txt"), samples)
    found: list[dict[str, Any]] = []
    while part := list(islice(read, together)):
        words = tokenizer([text for _, text in part], padding=True, return_tensors="pt")
        found.append({"pixel_values": torch.stack([pixels(image) for image, _ in part]), **words})
    return found


def reading(shards: str) -> Race:
    """Decoded and packed samples against decoded and padded ones, on one core each."""
    tokenizer = load_tokenizer("mini/lm")
    count = sum(len(row) for batch in packed(shards, tokenizer, SAMPLES) for row in batch.sample_ids)

    def rows(row: Mapping[str, Any]) -> Iterable[Measure]:
        for name, key in (("ours", "ours_ms"), ("webdataset and Pillow", "theirs_ms")):
            take = partial(truediv, 1e3 * count, row[key])
            yield Measure(name=f"read from tar files, {name}", take=take, unit="samples a second a core")

    return Race(
        name=f"{count} captioned pictures from tar files, decoded and packed", peer="webdataset, Pillow, padded",
        ours=lambda: packed(shards, tokenizer, count), theirs=lambda: padded(shards, tokenizer, count),
        macs=0.0, dtype=torch.float32, least=0.0, aim=0.0, follows=rows,
    )  # fmt: skip


class StageB:
    """Pre-training of VL-GPT at mini size on a tar file, read by as many threads as `tessera train` takes for files. It
    is a first epoch, and no feature is remembered: each picture is read, decoded and encoded."""

    def __init__(self, shards: str, device: torch.device) -> None:
        torch.manual_seed(0)
        with quiet():
            parts = load_mini().to(device)
        options = TrainOptions(out=Path(), data=(shards,))
        run = Run(
            parts,
            replace(MINI, aligned=0, told=0, drawn=0),
            Streams([(open_world(shards), 1.0)], parts.tokenizer, POSITIONS, workers=options.reading_threads),
        )
        stages = run.stages()
        next(stages)
        run.patches.limit = 0
        stage = next(stages)
        run.embeds.limit = 0
        set_trainable(stage.model, stage.trainable)
        bf16 = choose_precision("auto", device) == "bf16"
        self.stage, self.dtype = stage, torch.bfloat16 if bf16 else torch.float32
        self.module = StepModule(stage.model, stage.objective, bf16)
        self.optimisers = stage.optimiser.build(stage.model, has_fast_bf16(device))
        self.accelerator = open_accelerator(device.type)
        self.data = iter(stage.loader)

    def next(self) -> Batch:
        """The next batch on the device."""
        return cast("Batch", to_device(next(self.data), self.accelerator.device))

    def learn(self, batches: Iterable[Batch]) -> None:
        """A step on each: gradients and update."""
        model = self.stage.model
        for batch in batches:
            gradients(self.accelerator, self.module, self.stage, [batch], 0)
            update(model, self.optimisers, self.stage.optimiser, RATE, norm_of_gradient(model))

    def race(self) -> Race:
        """Steps before each of which the loader gives the next batch, against steps alone. Both learn from the same
        few batches, whose pictures are decoded: those of others have other shapes, and so take other times."""
        batches = (self.next() for _ in range(HELD))
        held = [replace(one, images=[Image(image.pil()) for image in one.images]) for one in batches]
        taken = list(islice(cycle(held), STEPS))

        def beside() -> Iterator[Batch]:
            for batch in taken:
                self.next()
                yield batch

        def rows(row: Mapping[str, Any]) -> Iterable[Measure]:
            yield Measure(
                name="share of a stage B step that waits for data", take=lambda: 1 - row["speed"], unit="of the step",
                dtype=row["dtype"], floor=WAITS[0], aim=WAITS[1],
                how="1 - steps alone / the same steps, each after its turn at the loader, which reads no picture twice",
            )  # fmt: skip

        return Race(
            name=f"{STEPS} steps of stage B, {ROWS} rows of {ROW_LENGTH}, as data are read",
            peer="the same steps alone", ours=lambda: self.learn(beside()), theirs=lambda: self.learn(taken),
            macs=0.0, dtype=self.dtype, least=1 - WAITS[0], aim=1 - WAITS[1], follows=rows,
        )  # fmt: skip


def races(device: torch.device) -> Iterator[Race]:
    """Reading, on processors; waiting, everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_shards(ScenesWorld().source("pairs"), shards, count=WRITTEN, size=WRITTEN)
        tar = str(shards / "00000.tar")
        with unwatched(), kept():  # as the engine has it
            if device.type == "cpu":
                yield reading(tar)
            yield StageB(tar, device).race()
