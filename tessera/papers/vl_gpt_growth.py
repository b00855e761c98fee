"""Bench `growth`: how the time of a training step of VL-GPT grows with the length of a sequence and with the model.

Ours and the plain way take turns.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from tessera.data.packing import Batch
from tessera.data.sample import Image
from tessera.data.sequence import IGNORED
from tessera.papers.vl_gpt_steps import SIZES, Bench, Size, llama, whole
from tessera.study.bench import Measure, timed
from tessera.train.memory import kept

LENGTHS = tuple(2**power for power in range(7, 14))  # 128 to 8192, one sequence a step
MODELS = ((128, 352, 2), (256, 704, 4), (384, 1024, 6), (512, 1408, 8), (640, 1728, 12))  # width, inner, layers
SEQUENCE, ROWS = 64, 16  # positions of each sequence and how many there are, where models are compared
ROUNDS = 5
ATTENTION = 2.0  # the power of the length with which attention's own cost grows


def written(lengths: Sequence[int], size: Size, device: torch.device, ids: Mapping[str, int]) -> Batch:
    """Rows of one sequence each, a picture and words after it, all learned but the first position."""
    longest, picture = max(lengths), size.positions + 2
    drawn = torch.randint(10, 2000, (len(lengths), longest), generator=torch.Generator().manual_seed(0))
    drawn[:, 1] = ids["image_start_id"]
    drawn[:, 2:picture] = ids["image_placeholder_id"]
    drawn[:, picture] = ids["image_end_id"]
    visual = drawn == ids["image_placeholder_id"]
    labels = drawn.masked_fill(visual, IGNORED)
    labels[:, 0] = IGNORED
    places = torch.arange(longest).expand(len(lengths), -1)
    held = places < torch.tensor(lengths)[:, None]
    pictures = [Image(np.zeros((8, 8, 3), np.uint8), key=str(number)) for number in range(len(lengths))]
    return Batch(
        input_ids=drawn, labels=labels, visual_target=visual, position_ids=places, segment_ids=held.long(),
        images=pictures, sample_ids=[[str(number)] for number in range(len(lengths))],
    ).to(device)  # fmt: skip


def step_times(bench: Bench) -> tuple[float, float]:
    """Milliseconds of a step of ours and of the plain way: medians of ROUNDS rounds that take turns."""
    ways = (bench.ours(bench.model()), bench.plain(bench.model()))
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for way, found in zip(ways, seconds, strict=True):
            took = timed(way, bench.device)
            if number:  # the first warms up
                found.append(took)
    return 1e3 * statistics.median(seconds[0]), 1e3 * statistics.median(seconds[1])


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The power of x with which y grows, by least squares of their logarithms."""
    xs, ys = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    middle = statistics.fmean(xs)
    return sum((x - middle) * y for x, y in zip(xs, ys, strict=True)) / sum((x - middle) ** 2 for x in xs)


def fitted(points: Sequence[tuple[float, float, float]], across: str) -> dict[str, Any]:
    """JSON values of a growth: the power over all `points` (x, ours, plain), and at their end, where it is largest."""
    ours = [(x, y) for x, y, _ in points]
    plain = [(x, y) for x, _, y in points]
    return {
        "value": exponent(ours[-3:]), "over all": exponent(ours), "plain, at the end": exponent(plain[-3:]),
        "across": across, "points": [list(point) for point in points],
    }  # fmt: skip


def by_length(device: torch.device) -> Mapping[str, Any]:
    """The language model of mini/lm over one sequence, ever longer."""
    points = []
    for length in LENGTHS:
        size = replace(SIZES["mini"], name=f"{length} positions", rows=1)
        size = replace(size, recipe=replace(whole(1), row_length=length, tokenizer={"num_embeddings": 16}))
        bench = Bench(size, device, made=partial(written, [length], size, device))
        points.append((float(length), *step_times(bench)))
    return fitted(points, "positions of a sequence")


def by_model(device: torch.device) -> Mapping[str, Any]:
    """Models of LLaMA's shape, ever larger, over the same sequences."""
    points = []
    for width, inner, layers in MODELS:
        recipe = replace(whole(ROWS), row_length=SEQUENCE, tokenizer={"num_embeddings": 16})
        text = {**llama(width, inner, layers), "vocab_size": 2048}
        size = Size(name=f"width {width}", recipe=recipe, rows=ROWS, text=text)
        bench = Bench(size, device, made=partial(written, [SEQUENCE] * ROWS, size, device))
        points.append((bench.macs, *step_times(bench)))
    return fitted(points, "multiply-adds of a step")


def growth(device: torch.device) -> Iterator[Measure]:
    """Bench `growth`."""
    how = "the power over the last three points, each the median of several steps"
    with kept():
        yield Measure(
            name="time of a step against its length", take=lambda: by_length(device), unit="power",
            floor=ATTENTION + 0.1, aim=ATTENTION - 0.3, how=how,
        )  # fmt: skip
        yield Measure(
            name="time of a step against its multiply-adds", take=lambda: by_model(device), unit="power", floor=1.1,
            aim=1.0, how=how,
        )  # fmt: skip
