"""`tessera cases run`, `votes`, `write`: multiple-choice cases with pictures, asked of a model or an endpoint."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.cli.options import argument, option
from tessera.cli.printing import number, print_json, print_table
from tessera.errors import UserError
from tessera.files import write_json

if TYPE_CHECKING:
    from tessera.evaluate.cases.respondents import Respondent

_CASES = "a .jsonl, .json or .csv of cases, or a folder with one and its pictures (see docs/cases.md)"
REASONS = 3  # that are printed of why no option was chosen


@dataclass
class CasesRun:
    """Ask a model every case, by its text, its picture and both; write replies, scores and a page. The same command
    goes on where it was stopped."""

    cases: Path = argument(_CASES)
    model: Path | None = option("folder that `tessera train` wrote, or mini/llava", None)
    endpoint: str | None = option("address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1", None)
    model_name: str | None = option("what the endpoint calls the model", None)
    modes: tuple[str, ...] = option(
        "what is shown: text, image, both, and both with a wrong hint: note, vignette", ("text", "image", "both")
    )
    style: str = option("of the prompts: plain, reasoned (step by step), formatted, bare", "plain")
    repeats: int = option("how often each case is asked in each mode", 1, least=1)
    temperature: float = option("0 takes the likeliest words", 0.0)
    seed: int = option("of the order of options, the hints and the drawn words", 0, least=0)
    keep_order: bool = option("list options as the file does, not shuffled", False)
    together: int = option("prompts that are asked at once", 8, least=1)
    timeout: float = option("seconds that an endpoint may take for a reply", 120.0)
    out: Path = option("folder of the run", Path("runs/cases"))
    json: bool = option("print the scores as JSON", False)

    def run(self) -> None:
        from tessera.app.cases_report import render
        from tessera.evaluate.cases.reading import read_cases
        from tessera.evaluate.cases.running import Plan, run
        from tessera.evaluate.cases.scoring import judge, score

        plan = Plan(
            modes=tuple(dict.fromkeys(self.modes)), repeats=self.repeats, temperature=self.temperature,  # type: ignore[arg-type]
            seed=self.seed, style=self.style, shuffle=not self.keep_order, together=self.together,
        )  # fmt: skip
        cases = read_cases(self.cases)
        respondent = self._respondent()
        with _bar() as tell:
            answered = run(cases, respondent, plan, self.out, tell)
        scores = score(cases, answered)
        result = {
            "data": str(self.cases), "model": respondent.name, "plan": asdict(plan),
            "command": shlex.join(["tessera", *sys.argv[1:]]), "scores": scores,
        }  # fmt: skip
        write_json(self.out / "result.json", result)
        page = render(self.out, result, judge(cases, answered))
        if self.json:
            print_json(result)
            return
        _print_modes(scores)
        _print_silence(scores)
        _print_left_out(scores)
        print(f"report: {page}")

    def _respondent(self) -> Respondent:
        """Who is asked. Raises UserError where neither or both are named."""
        if (self.model is None) == (self.endpoint is None):
            raise UserError("name one who is asked: --model FOLDER, or --endpoint URL with --model-name NAME")
        if self.endpoint is not None:
            from tessera.evaluate.cases.endpoint import Endpoint

            if not self.model_name:
                raise UserError("--endpoint needs --model-name, as the server calls the model")
            if not self.timeout > 0:
                raise UserError(f"--timeout takes a number above 0, not {self.timeout}")
            return Endpoint(self.endpoint, self.model_name, self.timeout)
        assert self.model is not None
        from tessera.evaluate.cases.respondents import Loaded
        from tessera.loading import load

        model = load(self.model)
        if "ask" not in model.abilities:
            able = ", ".join(model.abilities)
            raise UserError(f"the {type(model).__name__} in {self.model} answers no questions; it can {able}")
        return Loaded(model, str(self.model))


@dataclass
class CasesVotes:
    """What the votes of human readers say: the mean share of right ones, and the option with most of them."""

    cases: Path = argument(_CASES)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        from tessera.evaluate.cases.human import readers
        from tessera.evaluate.cases.reading import read_cases

        cases = read_cases(self.cases)
        found = readers(cases.cases)
        if found is None:
            raise UserError(f"no case of {self.cases} has votes")
        if self.json:
            print_json(found)
            return
        quartiles = ", ".join(f"{cut:.2f}" for cut in found["quartiles"])
        rows = [
            ("mean share of right votes", _percent(found["mean share"])),
            ("the most voted option is right", _percent(found["plurality"])),
            ("quartiles of the share", f"{quartiles} ({found['least']:.2f} to {found['most']:.2f})"),
            ("mean Brier score", f"{found['brier']:.4f}"),
            ("cases, votes", f"{found['cases']:,}, {found['votes']:,}"),
        ]
        if found["votes"]:
            rows.insert(2, ("share of right votes, each vote alike", f"{found['weighted mean']:.1%}"))
        print_table(rows, ("readers", "value"))
        _print_left_out({"skipped": cases.skipped, "unread votes": cases.unread})


@dataclass
class CasesWrite:
    """Write cases made from the scenes world, with pictures, strata and made-up votes."""

    out: Path = option("folder for them")
    count: int = option("how many", 200, least=1)
    leak: float = option("chance from 0 to 1 that a word of the class stands in the text", 0.5)
    seed: int = option("of every random draw", 0, least=0)

    def run(self) -> None:
        from tessera.evaluate.cases.scenes import write_scene_cases

        print(f"cases: {write_scene_cases(self.out, self.count, leak=self.leak, seed=self.seed)}")


def _percent(one: dict[str, Any]) -> str:
    return f"{one['value']:.1%} ({one['low']:.1%} to {one['high']:.1%}), n {one['n']}"


def _print_modes(scores: dict[str, Any]) -> None:
    rows = [
        (mode, _percent(one["accuracy"]), _percent(one["answered alone"]) if one["answered alone"] else "–",
         f"{one['no response']['value']:.1%}")
        for mode, one in scores["modes"].items()
    ]  # fmt: skip
    if scores["readers"]:
        rows.append(("readers, mean share", _percent(scores["readers"]["mean share"]), "", ""))
        rows.append(("readers, most voted", _percent(scores["readers"]["plurality"]), "", ""))
    print_table(rows, ("shown", "right, no response counted as wrong", "right of those answered", "no response"))


def _print_silence(scores: dict[str, Any]) -> None:
    """Why there was no response."""
    for mode, one in scores["modes"].items():
        if one["reasons"]:
            counts = list(one["reasons"].items())
            said = [f"{number(count)} {why}" for why, count in counts[:REASONS]]
            if others := sum(count for _, count in counts[REASONS:]):
                said.append(f"{number(others)} for reasons that result.json lists")
            print(f"no response, shown {mode}: {', '.join(said)}")


def _print_left_out(scores: dict[str, Any]) -> None:
    for what, title in (("skipped", "left out"), ("unread votes", "with votes that cannot be read")):
        names = list(scores[what])
        if names:
            more = ", ..." if len(names) > 3 else ""
            print(f"{len(names)} {title}: {', '.join(names[:3])}{more} ({scores[what][names[0]]})")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar, on a terminal alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("cases"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("cases", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
