"""`tessera doctor`: what this machine has, and what it can run."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tessera import __version__
from tessera.cli.options import option
from tessera.cli.printing import print_json
from tessera.errors import UserError

CPU_FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
LIBRARIES = (
    "torch",
    "transformers",
    "diffusers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "pillow",
)
GIB = 2**30


@dataclass
class Doctor:
    """What this machine has and what it can run."""

    json: bool = option("print JSON", False)

    def run(self) -> None:
        found = examine()
        if self.json:
            print_json(found)
            return
        for name, value in found.items():
            if name != "notes":
                shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
                print(f"{name:<10} {shown}")
        print()
        for note in found["notes"]:
            print(f"- {note}")


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "missing"


def _cpu() -> dict[str, Any]:
    """Name, usable cores and those of CPU_FLAGS that the processor has (known on Linux only)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, flags = platform.processor() or platform.machine(), []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name = fields.get("model name", name)
        flags = [flag for flag in CPU_FLAGS if flag in fields.get("flags", "").split()]
    return {"name": name, "cores": cores, "flags": " ".join(flags) or "-"}


def _memory_gib() -> float | None:
    """Memory of the machine, or of the container where that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
    return round(total / GIB, 1)


def _torch() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    from tessera.train.select import choose_precision

    device = torch.device("cuda" if gpus else "cpu")
    return {
        "threads": torch.get_num_threads(),
        "gpu": "; ".join(gpus) or "none",
        "precision": choose_precision("auto", device),
    }


def _emoji() -> tuple[str, str | None]:
    """The emoji font, and what is to be said about it."""
    from tessera.data.worlds.emoji_font import EmojiFont, find_font

    try:
        font = EmojiFont(find_font())
    except UserError as error:
        return "none", f"world 'emoji' cannot be opened: {error}"
    if not font.shapes_sequences:
        return str(font.path), "Pillow finds no FriBiDi: emoji made of several code points are left out"
    return str(font.path), None


def examine() -> dict[str, Any]:
    """All findings as plain values; `notes` are sentences on what runs and what is missing."""
    cpu, memory, torch_found = _cpu(), _memory_gib(), _torch()
    font, font_note = _emoji()
    free = shutil.disk_usage(".").free / GIB
    notes = []
    where = "on the GPU" if torch_found["gpu"] != "none" else f"on {cpu['cores']} CPU cores"
    notes.append(f"`tessera train vl-gpt` runs here {where} in {torch_found['precision']}")
    if torch_found["gpu"] == "none":
        notes.append("no GPU that torch can drive: `--size published` is for machines that have one")
    if torch_found["gpu"] == "none" and torch_found["precision"] == "fp32":
        notes.append("this CPU has no fast bf16 (AMX or AVX512-bf16): training takes fp32, several times slower")
    if memory is not None and memory < 3:
        notes.append(f"{memory} GiB of memory is little: training the mini models takes about 3")
    if free < 2:
        notes.append(f"{free:.1f} GiB of disk is free here: checkpoints may not fit")
    if font_note:
        notes.append(font_note)
    return {
        "tessera": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu,
        "memory": "unknown" if memory is None else f"{memory} GiB",
        "disk": f"{free:.1f} GiB free",
        **torch_found,
        "emoji": font,
        "versions": {library: _version(library) for library in LIBRARIES},
        "notes": notes,
    }
