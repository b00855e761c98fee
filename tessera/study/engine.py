"""Run a study: every arm with every seed, then `results/SLUG.json`. A killed run goes on where it was."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tessera.errors import DataError, UserError
from tessera.evaluate.intervals import t_interval
from tessera.files import write_json
from tessera.study.design import Arm, Outcome, Study
from tessera.study.machine import commit, describe_machine, versions
from tessera.study.verdict import compare

MIN_SEEDS = 3
WORK = Path("runs") / "studies"
_VERSION = 1


@dataclass(frozen=True)
class _Cell:
    """One arm with one seed: its outcome, how long it took, where and from which commit."""

    outcome: Outcome
    seconds: float
    machine: Mapping[str, Any]
    commit: str | None
    reused: bool


def run(
    study: Study,
    seeds: int | Sequence[int] = MIN_SEEDS,
    *,
    out: str | Path | None = None,
    work: str | Path | None = None,
    command: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run every arm with every seed, compare them, write the result and return it.

    Args:
        seeds: how many (0, 1, ...), or which.
        out: the result's file; by default results/SLUG.json.
        work: where finished pairs of arm and seed are kept, by default runs/studies/SLUG. One is used again
            where its configuration is the same; the result says how many were, and of which commits.
        command: what the result names as its command; by default that of this process.
        tell: takes a sentence after each finished pair of arm and seed, with the time left.

    Raises:
        UserError: fewer than three seeds, or a claimed metric that an arm does not give.
        DataError: `out` is there and is no result of a study, or a kept outcome is damaged.
    """
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if len(set(chosen)) < MIN_SEEDS or len(set(chosen)) != len(chosen):
        raise UserError(f"a study needs {MIN_SEEDS} different seeds or more, not {chosen}")
    out = Path(out) if out is not None else Path("results") / f"{study.slug}.json"
    folder = Path(work) if work is not None else WORK / study.slug
    design = _designs(out, study.design_hash(chosen))
    todo = [(arm, seed) for arm in study.arms for seed in chosen]
    cells: dict[str, list[_Cell]] = {arm.name: [] for arm in study.arms}
    # Seed by seed: a run that is stopped has whole pairs, and a slow spell of the machine hits all arms.
    for number, seed in enumerate(chosen, start=1):
        for arm in study.arms:
            cell = _finished(study, arm, seed, folder) or _measure(study, arm, seed, folder)
            cells[arm.name].append(cell)
            if tell is not None:
                how = "kept from before" if cell.reused else f"{cell.seconds:.0f} s"
                left = _time_left(cells, sum(not _cell_file(study, one, s, folder).is_file() for one, s in todo))
                tell(f"seed {seed} ({number} of {len(chosen)}), arm {arm.name}: {how}{left}")
    result = _result(study, chosen, cells) | {"command": command or _command(), "design": design}
    write_json(out, result)
    return result


def _time_left(cells: Mapping[str, list[_Cell]], trainings: int) -> str:
    """What is said of so many trainings that are still to do, each as long as the mean of those done."""
    if not trainings:
        return ""
    spent = [cell.seconds for row in cells.values() for cell in row]
    return f"; about {trainings * sum(spent) / len(spent) / 60:.0f} min left"


def _cell_file(study: Study, arm: Arm, seed: int, folder: Path) -> Path:
    return folder / f"{study.arm_hash(arm)}-seed-{seed}.json"


def _measure(study: Study, arm: Arm, seed: int, folder: Path) -> _Cell:
    began = time.monotonic()
    outcome = arm.run(seed)
    for claim in study.claims:
        if arm.name in claim.arms:
            outcome.value(claim.metric)
    cell = _Cell(outcome, time.monotonic() - began, describe_machine(), commit(), reused=False)
    kept = {
        "arm": arm.name,
        "seed": seed,
        "seconds": cell.seconds,
        "machine": cell.machine,
        "commit": cell.commit,
    }
    plain = asdict(outcome) | {"items": {name: [float(x) for x in row] for name, row in outcome.items.items()}}
    plain["metrics"] = {name: float(value) for name, value in outcome.metrics.items()}
    write_json(_cell_file(study, arm, seed, folder), {**kept, "outcome": plain})
    return cell


def _finished(study: Study, arm: Arm, seed: int, folder: Path) -> _Cell | None:
    file = _cell_file(study, arm, seed, folder)
    if not file.is_file():
        return None
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        outcome = Outcome(**kept["outcome"])
        return _Cell(outcome, float(kept["seconds"]), kept["machine"], kept["commit"], reused=True)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not the outcome of an arm; delete it and run again") from error


def _result(study: Study, seeds: list[int], cells: Mapping[str, list[_Cell]]) -> dict[str, Any]:
    every = [cell for row in cells.values() for cell in row]
    outcomes = {name: [cell.outcome for cell in row] for name, row in cells.items()}
    claims = []
    for claim in study.claims:
        theirs = outcomes[claim.against] if isinstance(claim.against, str) else claim.against
        claims.append(compare(claim, outcomes[claim.arm], theirs))
    commits = list(dict.fromkeys(cell.commit for cell in every))
    return {
        "version": _VERSION,
        "slug": study.slug,
        "title": study.title,
        "seeds": seeds,
        "budget": _budget(study, outcomes),
        "claims": claims,
        "verdict": _overall([claim["verdict"] for claim in claims]),
        "arms": {arm.name: _arm(arm, cells[arm.name]) for arm in study.arms},
        "shared": dict(study.config),
        "seconds": round(sum(cell.seconds for cell in every), 1),
        "machine": every[-1].machine,
        "versions": versions(),
        "commit": commits[-1],
        "notes": [*_notes(every, commits), *study.notes],
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _overall(verdicts: list[str]) -> str:
    """One verdict for all claims: the worst of them."""
    return next((v for v in ("does not hold", "unclear") if v in verdicts), "holds" if verdicts else "unclear")


def _arm(arm: Arm, row: list[_Cell]) -> dict[str, Any]:
    shared = set.intersection(*(set(cell.outcome.names) for cell in row))
    metrics = {}
    for name in sorted(shared):
        values = [cell.outcome.value(name) for cell in row]
        metrics[name] = {**t_interval(values).to_json(), "by_seed": values}
    return {
        "config": dict(arm.config),
        "metrics": metrics,
        "steps": [cell.outcome.steps for cell in row],
        "samples": [cell.outcome.samples for cell in row],
        "seconds": [round(cell.seconds, 1) for cell in row],
    }


def _budget(study: Study, outcomes: Mapping[str, list[Outcome]]) -> dict[str, Any]:
    """Whether arms that a claim compares (or, without claims, all) took the same steps and saw as many samples.

    They need to be the same seed by seed: how many samples fill a packed row is a matter of their order.
    """
    budgets = {name: tuple((one.steps, one.samples) for one in row) for name, row in outcomes.items()}
    compared = [claim.arms for claim in study.claims] or [tuple(budgets)]
    equal = all(len({budgets[name] for name in names}) == 1 for names in compared)
    said = {name: ", ".join(map(_span, zip(*row, strict=True), ("steps", "samples"))) for name, row in budgets.items()}
    if len(set(budgets.values())) == 1:
        note = f"every arm: {next(iter(said.values()))} a seed"
    else:
        note = "; ".join(f"{name} {text}" for name, text in said.items())
        note = f"equal between the arms that are compared: {note} a seed" if equal else f"UNEQUAL: {note}"
    return {"equal": equal, "note": f"{note}; {study.tuning}", "tuning": study.tuning}


def _span(numbers: Sequence[int], unit: str) -> str:
    """As "300 steps", or "4000 to 4100 samples"."""
    low, high = min(numbers), max(numbers)
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _notes(every: list[_Cell], commits: list[str | None]) -> list[str]:
    notes = []
    reused = sum(cell.reused for cell in every)
    if reused:
        notes.append(f"{reused} of {len(every)} trainings were kept from an earlier run of this study")
    if len(commits) > 1:
        notes.append(f"the trainings were made from several commits: {', '.join(map(str, commits))}")
    if len({json.dumps(cell.machine, sort_keys=True) for cell in every}) > 1:
        notes.append("the trainings were made on several machines; the last is named")
    return notes


def _designs(out: Path, design: str) -> dict[str, Any]:
    """The design's hash, how many designs have been written to this file, and the verdicts of the others."""
    earlier: list[dict[str, Any]] = []
    if out.is_file():
        try:
            last = json.loads(out.read_text(encoding="utf-8"))
            earlier = [*last["design"]["earlier"]]
            if last["design"]["hash"] != design:
                verdicts = {claim["name"]: claim["verdict"] for claim in last["claims"]}
                earlier.append({"hash": last["design"]["hash"], "written": last["written"], "verdicts": verdicts})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{out} is not a result of a study; move it away or choose another --out") from error
    hashes = {one["hash"] for one in earlier} | {design}
    return {"hash": design, "tried": len(hashes), "earlier": earlier}


def _command() -> str:
    """The command line, of absolute paths their names alone: where they lay on a machine is nobody's business."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "tessera")
    words = [program]
    for word in sys.argv[1:]:
        option, equals, value = word.rpartition("=")  # --data=FOLDER, or the word alone
        words.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(words)
