"""The benches of VL-GPT's training: `ceiling`, `train` and `growth`; `vl_gpt_steps` has both ways of a step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tessera.papers.vl_gpt_steps import SIZES, Bench, Size, padded
from tessera.study.bench import Measure, Race
from tessera.study.bench_ceiling import best_of_step, launch, rates, traffic
from tessera.train.memory import kept

LEAST, AIM = 1.5, 2.5
MFU = {"cpu": (0.40, 0.60), "cuda": (0.45, 0.60)}
MEMORY, MEMORY_AIM = 1.3, 1.15
ARITHMETIC = (
    "{gmacs:,.0f} * 10^9 multiply-adds that the positions need (no padding, scores at learned positions, half of each"
    " square of attention) over the time of a step, over the rate of its matrix products alone"
)
STATUS = Path("/proc/self/status")


def race(bench: Bench) -> Race:
    """Both ways over the batch; ours is held against the matrix products of such a step alone."""
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    rows = padded(bench.batch)["input_ids"].shape

    def follows(row: Mapping[str, Any]) -> Iterable[Measure]:
        speed = {"value": 1e3 * bench.tokens / row["ours_ms"], "peer": 1e3 * bench.tokens / row["theirs_ms"]}
        how = f"{bench.tokens:,} positions that hold something, over the time of a step"
        name = f"{bench.size.name}, {bench.stage}"
        yield Measure(name=f"{name}: training speed", take=lambda: speed, unit="tokens/s", dtype=row["dtype"], how=how)
        floor, aim = MFU[bench.device.type] if bench.size.mfu == bench.device.type else (None, None)
        yield Measure(
            name=f"{name}: share of the ceiling (MFU)", take=lambda: row["of_ceiling"], unit="", dtype=row["dtype"],
            floor=floor, aim=aim, how=ARITHMETIC.format(gmacs=bench.macs / 1e9),
        )  # fmt: skip

    return Race(
        name=f"VL-GPT {bench.size.name}, {bench.stage}: {bench.size.rows} x {bench.size.recipe.row_length} packed,"
        f" {rows[0]} x {rows[1]} padded",
        peer="LlamaForCausalLM, padded, all scores", ours=bench.ours(bench.model()), theirs=bench.plain(bench.model()),
        macs=bench.macs, dtype=dtype, least=LEAST, aim=AIM, counted=bench.plain_macs / bench.macs,
        ceiling=best_of_step(bench.shapes(), dtype, bench.device), follows=follows,
    )  # fmt: skip


def sizes(device: torch.device) -> list[Size]:
    """What is trained on a kind of device."""
    return [size for name, size in SIZES.items() if name != "1b" or device.type == "cuda"]


def races(device: torch.device) -> Iterator[Race | Measure]:
    """Bench `train`: pairs and pages at every size, conversations at mini, and memory."""
    with kept():
        for size in sizes(device):
            yield race(Bench(size, device))
            if size.name == "mini":
                yield race(Bench(size, device, "instruct"))
            else:
                yield memory(size, device)


def ceiling(device: torch.device) -> Iterator[Measure]:
    """Bench `ceiling`: rates at the shapes of the bench `train`, traffic, launches."""
    yield from rates((shape for size in sizes(device) for shape, _ in Bench(size, device).shapes()), device)
    yield from traffic(device)
    yield launch(device)


def memory(size: Size, device: torch.device) -> Measure:
    """The peak of a step whose activations are recomputed, over what must be held."""

    def take() -> Mapping[str, Any] | None:
        if device.type == "cuda":
            found = peak(size.name, device.type)
        elif STATUS.is_file():
            # In a process of its own: nothing of the races is still held there.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(peak, size.name, device.type).result()
        else:
            return None
        return {"value": found["peak"] / found["held"], **found}

    return Measure(
        name=f"{size.name}: peak memory with activation checkpointing, over what must be held", take=take, unit="x",
        floor=MEMORY, aim=MEMORY_AIM,
        how="16 bytes a parameter (weight, gradient, two moments in single precision) and 4 a number of the input of"
        " each layer at each position",
    )  # fmt: skip


def peak(name: str, device_type: str) -> dict[str, int]:
    """Bytes at most while a model is made and trained two steps, and those that it must hold."""
    device = torch.device(device_type)
    size = next(one for one in SIZES.values() if one.name == name)
    small = Bench(SIZES["mini"], device, checkpointing=True)
    small.ours(small.model())()  # libraries are loaded and kernels made
    before = _start_peak(device)
    bench = Bench(size, device, checkpointing=True)
    model = bench.model()
    step = bench.ours(model)
    with kept():
        for _ in range(2):
            step()
    text = model.config.text_config
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    inputs = text.num_hidden_layers * bench.batch.input_ids.numel() * text.hidden_size
    # Linux adds up the pages of its processors late: a step that takes next to nothing can seem to give some back.
    return {"peak": max(0, _peak(device) - before), "held": 16 * trained + 4 * inputs, "parameters": trained}


def _start_peak(device: torch.device) -> int:
    """Bytes that are in use now, where the next peak counts from."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak starts anew
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
