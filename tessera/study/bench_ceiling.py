"""What this machine can do at most: matrix products at the shapes of a model, memory traffic, small operations.

Legend: a shape (m, k, n) is the linear layer of k inputs and n outputs over m positions. Its three products, of m k n
multiply-adds each, are the output [m, n], the gradient of the input [m, k] and that of the weight [n, k].
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from tessera.study.bench import Measure

Shape = tuple[int, int, int]
ROUNDS = 5
LEAST_SECONDS = 0.02  # of a round: as many runs as it takes
TRAFFIC = {"in the cache": 2**20, "out of memory": 2**28}  # bytes that are copied
SMALL = 256  # operations in a row, of one number each
KINDS = ("output", "input gradient", "weight gradient")


def linear_shapes(config: PreTrainedConfig, positions: int, learned: int) -> dict[str, tuple[Shape, int]]:
    """The linear layers of a LLaMA-like language model over `positions`, its head at those that are learned: name ->
    (shape, how many there are)."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    asked, held = config.num_attention_heads * head, config.num_key_value_heads * head
    return {
        "query": ((positions, width, asked), layers),
        "key, value": ((positions, width, held), 2 * layers),
        "out of attention": ((positions, asked, width), layers),
        "gate, up": ((positions, width, inner), 2 * layers),
        "down": ((positions, inner, width), layers),
        "vocabulary": ((learned, width, config.vocab_size), 1),
    }


def products(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], object]]:
    """The three products of a linear layer, by KINDS, in operands of the layouts that training gives them."""
    m, k, n = shape
    x, weight, y = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (n, k), (m, n)))
    return dict(zip(KINDS, (lambda: x @ weight.T, lambda: y @ weight, lambda: y.T @ x), strict=True))


def seconds(way: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """Of one run: the median of several rounds, each of at least LEAST_SECONDS."""
    way()
    runs = 1
    while (took := _several(way, runs, device)) < LEAST_SECONDS:
        runs *= 2
    return statistics.median([took, *(_several(way, runs, device) for _ in range(rounds - 1))]) / runs


def _several(way: Callable[[], object], runs: int, device: torch.device) -> float:
    began = time.perf_counter()
    for _ in range(runs):
        way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rate(shape: Shape, dtype: torch.dtype, device: torch.device) -> Measure:
    """FLOP/s of the fastest of a layer's three products, and of each."""
    m, k, n = shape

    def take() -> Mapping[str, Any]:
        each = {kind: 2e-9 * m * k * n / seconds(way, device) for kind, way in products(shape, dtype, device).items()}
        return {"value": max(each.values()), "kinds": each}

    return Measure(
        name=f"products of {m} x {k} x {n}", take=take, unit="GFLOP/s", dtype=str(dtype).removeprefix("torch."),
        how="2 m k n over the time of the fastest of the layer's three products",
    )  # fmt: skip


def rates(shapes: Iterable[Shape], device: torch.device) -> Iterator[Measure]:
    """Of every shape once, in single precision and in bfloat16."""
    distinct = dict.fromkeys(shapes)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in distinct:
            yield rate(shape, dtype, device)


def best_of_step(
    shapes: Iterable[tuple[Shape, int]], dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[], object], float]:
    """The matrix products of one training step and nothing else, each by the fastest of its layer's three; and their
    multiply-adds. What a step is held against: a lower bound on its time, not something to be reached."""
    work: list[tuple[Callable[[], object], int]] = []
    macs = 0.0
    for shape, number in shapes:
        ways = products(shape, dtype, device).values()
        work.append((min(ways, key=lambda way: seconds(way, device, rounds=3)), len(KINDS) * number))
        macs += len(KINDS) * number * float(shape[0] * shape[1] * shape[2])

    def run() -> None:
        for way, number in work:
            for _ in range(number):
                way()

    return run, macs


def traffic(device: torch.device) -> Iterator[Measure]:
    """Bytes a second of a copy, read and written."""
    for where, size in TRAFFIC.items():

        def take(size: int = size) -> float:
            source = torch.ones(size // 4, device=device)
            target = torch.empty_like(source)
            return 2e-9 * size / seconds(lambda: target.copy_(source), device)

        yield Measure(name=f"copy {where}", take=take, unit="GB/s", how=f"{size} bytes, read and written")


def launch(device: torch.device) -> Measure:
    """Microseconds of an operation that has nothing to do."""

    def take() -> float:
        one = torch.ones(1, device=device)

        def run() -> None:
            for _ in range(SMALL):
                one.add_(1.0)

        return 1e6 * seconds(run, device) / SMALL

    return Measure(name="one small operation", take=take, unit="us", how="an addition to one number, many in a row")
