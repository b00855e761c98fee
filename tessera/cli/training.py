"""`tessera train` and `tessera reproduce`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tessera.cli.options import argument, option
from tessera.cli.printing import print_json, print_result
from tessera.papers.registry import TrainOptions, get


@dataclass
class Train:
    """Train a paper's model and write it into a folder, vl-gpt with a report. Ctrl-C saves; --resume goes on."""

    slug: str = argument("the short name that `tessera papers` lists")
    data: tuple[str, ...] = option(
        "worlds by name, or your files: a folder of pictures, tar shards, LLaVA or COCO JSON"
        " (default: the worlds that the paper's recipe names)",
        (),
    )
    out: Path | None = option("folder for the run (default runs/SLUG)", None)
    steps: int | None = option(
        "length of the whole training, shared among its stages, one step at least for each (default: the paper's)",
        None,
        least=1,
    )
    seed: int = option("of every random draw", 0, least=0)
    resume: bool = option("go on where the run in --out was left; start where there is none", False)
    allow_other_data: bool = option("with --resume: go on although the data have changed", False)
    size: Literal["mini", "published"] = option("mini parts that ship, or the paper's own", "mini")
    parts: dict[str, str] = option("published checkpoints by role, as in language=/models/llama-7b", {})
    set: dict[str, str] = option("fields of the recipe, as in align.batch=256 (see docs/training.md)", {})
    precision: Literal["auto", "bf16", "fp32"] = option("auto: bf16 where the hardware is fast at it", "auto")
    workers: int | None = option(
        "threads that read pictures ahead (default: 1 for files beside a GPU, else 0)", None, least=0
    )

    def run(self) -> None:
        options = TrainOptions(
            out=self.out or Path("runs") / self.slug,
            data=self.data,
            steps=self.steps,
            seed=self.seed,
            resume=self.resume,
            allow_other_data=self.allow_other_data,
            size=self.size,
            parts=self.parts,
            settings=self.set,
            precision=self.precision,
            workers=self.workers,
        )
        folder = get(self.slug).train(options)
        if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
            return
        print(f"model:  {folder}")
        if (options.out / "report.json").is_file():
            from tessera.app.report import render

            print(f"report: {render(options.out)}")


@dataclass
class Reproduce:
    """Arms by seeds at equal budget, paired differences with 95 % intervals, and a verdict."""

    slug: str = argument("the short name that `tessera papers` lists")
    seeds: int = option("how many seeds each arm is trained with", 3, least=3)
    processes: int = option(
        "how many pairs of arm and seed are trained at once, each with its share of the cores; small models gain most",
        1,
        least=1,
    )
    study: str | None = option(
        "a further study of the paper, such as nlvr of vl-gpt (default: that of its claims)", None
    )
    data: Path | None = option("files that a further study reads", None)
    model: Path | None = option("folder of the trained model that a further study starts from", None)
    out: Path | None = option(
        "the result file (default results/SLUG.json, or results/SLUG-STUDY.json)", None, file=True
    )
    json: bool = option("print the result as JSON", False)

    def run(self) -> None:
        paper = get(self.slug)
        out = self.out or Path("results") / f"{'-'.join(filter(None, (self.slug, self.study)))}.json"
        result = paper.reproduce(
            self.seeds, out, self.study, data=self.data, model=self.model, processes=self.processes
        )
        if self.json:
            print_json(result)
        else:
            print_result(result)
            print(f"result: {out}")
