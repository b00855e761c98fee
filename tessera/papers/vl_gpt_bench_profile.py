"""Bench `profile`: where the time of a training step of VL-GPT goes, before (the plain way) and after (ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tessera.papers.vl_gpt_bench import sizes
from tessera.papers.vl_gpt_steps import Bench
from tessera.study.bench import Measure
from tessera.train.memory import kept

TOP, STEPS = 10, 2
WAYS = {"before, the plain way": Bench.plain, "after, ours": Bench.ours}


def measures(device: torch.device) -> Iterator[Measure]:
    """A step of stage B at every size that is trained on the device, both ways over the same sequences."""
    with kept():
        for size in sizes(device):
            bench = Bench(size, device)
            for name, way in WAYS.items():
                step = way(bench, bench.model())
                yield Measure(
                    name=f"{size.name}, pretrain: a step, {name}",
                    take=lambda step=step: operators(step, device),  # type: ignore[misc]
                    unit="ms in operators", dtype="bfloat16" if bench.precision == "bf16" else "float32",
                )  # fmt: skip
                del step


def operators(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The operators of PyTorch that take the most time of a step in themselves, by its profiler.

    Returns:
        `value`, milliseconds of a step in all operators, and `operators`: for each of the first TOP its name, `ms`,
        `share` of all and `calls` in a step.
    """
    step()
    gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *gpu]) as seen:
        for _ in range(STEPS):
            step()
    clock = "self_device_time_total" if gpu else "self_cpu_time_total"
    each = sorted(((getattr(one, clock), one.key, one.count) for one in seen.key_averages()), reverse=True)
    total = sum(microseconds for microseconds, _, _ in each)
    top = [
        {"name": name, "ms": microseconds / STEPS / 1e3, "share": microseconds / total, "calls": count / STEPS}
        for microseconds, name, count in each[:TOP]
    ]
    return {"value": total / STEPS / 1e3, "operators": top}
