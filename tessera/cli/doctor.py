"""`tessera doctor`: what this machine has, and what it can run."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tessera import __version__
from tessera.cli.options import option
from tessera.cli.printing import print_json
from tessera.errors import UserError

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
                print(f"{name:<14} {_shown(value)}")
        print()
        for note in found["notes"]:
            print(f"- {note}")


def _shown(value: Any) -> str:
    """A finding on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return str(value)


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "missing"


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
    import torch

    from tessera.study.machine import describe_machine
    from tessera.train.select import choose_precision

    machine = describe_machine()
    cuda = torch.cuda.is_available()
    precision = choose_precision("auto", torch.device("cuda" if cuda else "cpu"))
    font, font_note = _emoji()
    free = round(shutil.disk_usage(".").free / 2**30, 1)
    where = "the GPU" if cuda else f"{machine['cores']} CPU cores"
    notes = [f"`tessera train vl-gpt` runs here on {where} in {precision}"]
    if not cuda:
        notes.append("no GPU that torch can drive: `--size published` is for machines that have one")
    if not cuda and precision == "fp32":
        notes.append("this CPU has no fast bf16 (AMX or AVX512-bf16): training takes fp32, which is slower")
    notes += _tight(machine["memory_gib"], free)
    return {
        "tessera": __version__,
        "python": platform.python_version(),
        **machine,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "disk_free_gib": free,
        "emoji_font": font,
        "versions": {library: _version(library) for library in LIBRARIES},
        "notes": notes + ([font_note] if font_note else []),
    }


def _tight(memory: float | None, free: float) -> list[str]:
    """What is scarce here, as sentences."""
    notes = []
    if memory is not None and memory < 3:
        notes.append(f"{memory} GiB of memory is little: training the mini models takes up to 3")
    if free < 2:
        notes.append(f"{free} GiB of disk is free here: checkpoints may not fit")
    return notes
