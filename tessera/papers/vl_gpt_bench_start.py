"""Races of the start: commands in fresh processes, against what Python and the libraries alone take."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.papers.vl_gpt_bench_generate import untrained
from tessera.study.bench import Measure, Race

AT_ONCE = (0.5, 0.2)  # seconds of the commands that need no library
LIBRARIES = "import torch; from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast"


def process(*words: str) -> Callable[[], object]:
    """Python with these words, in a process of its own that must end well."""
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


def race(name: str, words: tuple[str, ...], peer: str, code: str, *bounds: float) -> Race:
    """`tessera` with these words against `code`; the files of both have been read before."""

    def rows(row: Mapping[str, Any]) -> Iterable[Measure]:
        floor, aim = bounds or (None, None)
        yield Measure(
            name=f"{name}, in a fresh process", take=lambda: row["ours_ms"] / 1e3, unit="s", floor=floor, aim=aim
        )

    return Race(
        name=name, peer=peer, ours=process("-m", "tessera", *words), theirs=process("-c", code), macs=0.0,
        dtype=torch.float32, least=0.0, aim=0.0, follows=rows,
    )  # fmt: skip


def races(device: torch.device) -> Iterator[Race]:
    """Help, the list of papers, and a first caption, on the processor alone."""
    if device.type != "cpu":
        return
    yield race("tessera --help", ("--help",), "Python alone", "pass", *AT_ONCE)
    yield race("tessera papers", ("papers",), "Python alone", "pass", *AT_ONCE)
    with tempfile.TemporaryDirectory() as folder:
        model, picture = Path(folder) / "model", Path(folder) / "picture.png"
        untrained(device).save(model)
        ScenesWorld().source("pairs", "heldout")[0].images[0].pil().save(picture)
        words = ("caption", str(picture), "--model", str(model))
        yield race("a first caption from a saved model", words, "importing torch and transformers", LIBRARIES)
