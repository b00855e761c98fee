"""VL-GPT's recipe in one process and in two, each training in forked children of one process that imports once.

python -m tests.papers.together_children OUT      prints the exit codes of all trainings as one JSON object
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch._dynamo  # optimisers import it at their first step: once here, not once a child

from tessera.cli import main
from tessera.data.worlds import open_world
from tessera.papers import vl_gpt  # noqa: F401
from tests.papers.published_tiny import published_parts, train_line
from tests.train.children import FSDP2, group

SHORT = {f"{stage}.{key}": value for stage in ("align", "pretrain", "instruct") for key, value in
         (("batch", 4), ("steps", 3))}  # fmt: skip
ADAPTERS = {**SHORT, "model.lora_dropout": 0}  # processes draw their own dropout
WHOLE = {**SHORT, "lora": False, **{f"{stage}.kind": "muon" for stage in ("align", "pretrain", "instruct")}}
PARTS = {**ADAPTERS, **{f"{stage}.accumulate": 2 for stage in ("align", "pretrain", "instruct")}}
RUNS = {
    "adapters-one": (ADAPTERS, 1, {}),
    "adapters-parts": (PARTS, 1, {}),
    "adapters-ddp": (ADAPTERS, 2, {}),
    "adapters-fsdp": (ADAPTERS, 2, FSDP2),
    "whole-one": (WHOLE, 1, {}),
    "whole-ddp": (WHOLE, 2, {}),
    "whole-fsdp": (WHOLE, 2, FSDP2),
}


def train(line: list[str]) -> None:
    if main(line):
        raise SystemExit("the training failed")


def run_all(out: Path) -> dict[str, list[int]]:
    parts = published_parts(out / "parts", open_world("scenes"))
    codes = {}
    for name, (settings, world, environment) in RUNS.items():
        line = train_line(out / name, parts, settings)
        codes[name] = group(lambda line=line: train(line), world, out / name, **environment)  # type: ignore[misc]
    return codes


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(run_all(Path(sys.argv[1]))) + "\n")
