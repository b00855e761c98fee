"""Run a study: every arm with every seed, then `results/SLUG.json`. A killed run goes on where it was."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera.errors import DataError, UserError
from tessera.evaluate.intervals import t_interval
from tessera.files import check_file, write_json
from tessera.study import cells
from tessera.study.cells import Cell
from tessera.study.design import Arm, Outcome, Study
from tessera.study.machine import versions
from tessera.study.processes import log_of, threads_each, train_all
from tessera.study.verdict import compare

MIN_SEEDS = 3
WORK = Path("runs") / "studies"
_VERSION = 1


def run(
    study: Study,
    seeds: int | Sequence[int] = MIN_SEEDS,
    *,
    out: str | Path | None = None,
    work: str | Path | None = None,
    command: str | None = None,
    tell: Callable[[str], None] | None = None,
    processes: int = 1,
    make: Callable[[], Study] | None = None,
) -> dict[str, Any]:
    """Run every arm with every seed, compare them, write the result and return it.

    Args:
        seeds: how many (0, 1, ...), or which.
        out: the result's file; by default results/SLUG.json.
        work: where finished pairs of arm and seed are kept, by default runs/studies/SLUG. One is used again
            where its configuration is the same; the result says how many were, and of which commits.
        command: what the result names as its command; by default that of this process.
        tell: takes a sentence after each finished pair of arm and seed, with the time left.
        processes: how many train at once, each with its share of the cores; see `tessera.study.processes`.
        make: for more than one process: a function that pickles, with arguments that do, and makes `study` anew.

    Raises:
        UserError: fewer than three seeds, a claimed metric that an arm does not give, or no place for `out`.
        DataError: `out` is there and is no result of a study, or a kept outcome is damaged.
        TrainingStopped: one of several processes was killed.
    """
    began = time.monotonic()
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if len(set(chosen)) < MIN_SEEDS or len(set(chosen)) != len(chosen):
        raise UserError(f"a study needs {MIN_SEEDS} different seeds or more, not {chosen}")
    out = check_file(out if out is not None else Path("results") / f"{study.slug}.json")
    folder = Path(work) if work is not None else WORK / study.slug
    design = _designs(out, study.design_hash(chosen))
    progress = _Progress(study, chosen, folder, tell)
    progress.processes = max(1, min(processes, progress.left))
    _train(study, progress, folder, make)
    elapsed = round(time.monotonic() - began, 1)
    result = _result(study, chosen, progress.rows) | {
        "processes": progress.processes,
        "elapsed": elapsed,
        "notes": [*progress.notes(elapsed), *_notes(progress.rows), *study.notes],
        "command": command or _command(),
        "design": design,
    }
    if study.further is not None:
        result |= study.further(result["arms"])
    write_json(out, result)
    return result


def _train(study: Study, progress: _Progress, folder: Path, make: Callable[[], Study] | None) -> None:
    """Every cell that is not kept yet, in as many processes as `progress` says."""
    number, seeds = progress.processes, progress.seeds
    if number > 1:
        if make is None:
            raise UserError(
                f"the study {study.slug} is not one that other processes can make; run it in one, not {number}"
            )
        progress.begin()  # a damaged outcome is found before the first training
        train_all(make, seeds, folder, number, progress.trained)
    # What is left: all of it with one process, else what another run of this study had in hand.
    # Seed by seed: a run that is stopped has whole pairs, and a slow spell of the machine hits all arms.
    for seed in seeds:
        for arm in study.arms:
            file = cells.file_of(study, arm, seed, folder)
            if not file.is_file() and cells.train(study, arm, seed, folder):
                progress.trained(arm.name, seed)
            else:
                progress.kept(arm.name, seed)


class _Progress:
    """What is finished of a study: says it, keeps the cells and which of them this run has trained."""

    def __init__(self, study: Study, seeds: list[int], folder: Path, tell: Callable[[str], None] | None) -> None:
        self.files = {(arm.name, seed): cells.file_of(study, arm, seed, folder) for seed in seeds for arm in study.arms}
        self.seeds, self.tell, self.processes = seeds, tell or _silent, 1
        self._found: dict[tuple[str, int], Cell] = {}
        self._trained: set[tuple[str, int]] = set()

    @property
    def left(self) -> int:
        """How many trainings are still to do."""
        return sum(not file.is_file() for file in self.files.values())

    @property
    def rows(self) -> dict[str, list[Cell]]:
        """By arm, in the order of the seeds."""
        rows: dict[str, list[Cell]] = {}
        for key in self.files:
            rows.setdefault(key[0], []).append(self._found[key])
        return rows

    def begin(self) -> None:
        """Several processes start."""
        for (arm, seed), file in self.files.items():
            if file.is_file():
                self.kept(arm, seed)
        threads, folder = threads_each(self.processes), next(iter(self.files.values())).parent
        self.tell(
            f"{self.processes} processes of {threads} {'thread' if threads == 1 else 'threads'} each train {self.left}"
            f" pairs of arm and seed; {log_of(folder, 0).parent} holds what they say"
        )

    def trained(self, arm: str, seed: int) -> None:
        """This run has trained a cell."""
        self._trained.add((arm, seed))
        self._say(arm, seed, f"{self._read(arm, seed).seconds:.0f} s")

    def kept(self, arm: str, seed: int) -> None:
        """A cell was there; said once, and not of one that this run has trained."""
        if (arm, seed) not in self._found:
            self._read(arm, seed)
            self._say(arm, seed, "kept from before")

    def _read(self, arm: str, seed: int) -> Cell:
        cell = cells.kept(self.files[arm, seed])
        if cell is None:
            raise DataError(f"{self.files[arm, seed]} was deleted while the study ran; run it again")
        self._found[arm, seed] = cell
        return cell

    def _say(self, arm: str, seed: int, how: str) -> None:
        left, place = "", self.seeds.index(seed) + 1
        if self.left:  # each as long as the mean of those that are done
            mean = sum(cell.seconds for cell in self._found.values()) / len(self._found)
            left = f"; about {self.left * mean / self.processes / 60:.0f} min left"
        self.tell(f"seed {seed} ({place} of {len(self.seeds)}), arm {arm}: {how}{left}")

    def notes(self, elapsed: float) -> list[str]:
        """What the result says of how this run came to its cells."""
        number, notes = len(self._trained), []
        if self.processes > 1:
            notes.append(
                f"{number} of {len(self.files)} trainings ran in {self.processes} processes at once, in {elapsed:.0f} s"
                " by the clock"
            )
        if number < len(self.files):
            kept = len(self.files) - number
            notes.append(f"{kept} of {len(self.files)} trainings were kept from an earlier run of this study")
        return notes


def _silent(text: str) -> None:
    """Says nothing."""


def _result(study: Study, seeds: list[int], rows: Mapping[str, list[Cell]]) -> dict[str, Any]:
    every = [cell for row in rows.values() for cell in row]
    outcomes = {name: [cell.outcome for cell in row] for name, row in rows.items()}
    claims = []
    for claim in study.claims:
        theirs = outcomes[claim.against] if isinstance(claim.against, str) else claim.against
        claims.append(compare(claim, outcomes[claim.arm], theirs))
    return {
        "version": _VERSION,
        "slug": study.slug,
        "title": study.title,
        "seeds": seeds,
        "budget": _budget(study, outcomes),
        "claims": claims,
        "verdict": _overall([claim["verdict"] for claim in claims]),
        "arms": {arm.name: _arm(arm, rows[arm.name]) for arm in study.arms},
        "shared": dict(study.config),
        "seconds": round(sum(cell.seconds for cell in every), 1),
        "machine": every[-1].machine,
        "versions": versions(),
        "commit": _commits(rows)[-1],
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _overall(verdicts: list[str]) -> str:
    """One verdict for all claims: the worst of them."""
    return next((v for v in ("does not hold", "unclear") if v in verdicts), "holds" if verdicts else "unclear")


def _arm(arm: Arm, row: list[Cell]) -> dict[str, Any]:
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


def _commits(rows: Mapping[str, list[Cell]]) -> list[str | None]:
    return list(dict.fromkeys(cell.commit for row in rows.values() for cell in row))


def _notes(rows: Mapping[str, list[Cell]]) -> list[str]:
    notes, commits = [], _commits(rows)
    if len(commits) > 1:
        notes.append(f"the trainings were made from several commits: {', '.join(map(str, commits))}")
    if len({json.dumps(cell.machine, sort_keys=True) for row in rows.values() for cell in row}) > 1:
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
