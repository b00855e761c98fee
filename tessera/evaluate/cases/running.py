"""A run: every case, in every mode, as often as asked for, each in a dialogue of its own. Replies are kept line by line
as they come, so that a run that is stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.images import open_image
from tessera.errors import BadSample, DataError, UserError, nearest
from tessera.evaluate.cases.prompting import HINTED, MODES, SEEING, STYLES, Mode, Prompt, prompt, shows, wrong_hint
from tessera.evaluate.cases.respondents import Reply, Respondent
from tessera.evaluate.cases.schema import Case, CaseSet

REPLIES = "replies.jsonl"
VERSION = 1
_log = logging.getLogger("tessera.evaluate")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a set of cases is asked.

    Args:
        repeats: how often each case is asked in each mode.
        seed: of the order of options, of hints and of drawn words.
        shuffle: options stand in another order for each case and repeat, the same in all modes; else as they are.
        together: prompts that are handed to the respondent at once; it changes no reply.

    Raises:
        UserError: an unknown mode or style, or none.
    """

    modes: tuple[Mode, ...] = ("text", "image", "both")
    repeats: int = 1
    temperature: float = 0.0
    seed: int = 0
    style: str = "plain"
    shuffle: bool = True
    together: int = 8

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                raise UserError(f"there is no mode {mode!r}{nearest(mode, MODES)}")
        if self.style not in STYLES:
            raise UserError(f"there is no style of prompts {self.style!r}{nearest(self.style, STYLES)}")
        if not self.modes or self.repeats < 1 or self.together < 1 or not self.temperature >= 0:
            raise UserError(
                f"a plan needs a mode, a repeat, a prompt at a time and a temperature of 0 or more, not"
                f" {len(self.modes)}, {self.repeats}, {self.together} and {self.temperature}"
            )


@dataclass(frozen=True, slots=True)
class Answered:
    """One case asked once.

    Attributes:
        order: places of the options in the order in which they were shown.
        problem: why no reply came; "" where one did.
    """

    case: str
    mode: Mode
    repeat: int
    order: tuple[int, ...]
    reply: str
    problem: str = ""
    tries: int = 1
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        """Which of all asked it is."""
        return self.case, self.mode, self.repeat


def generator(seed: int, *names: object) -> np.random.Generator:
    """Random numbers that depend on the seed and the names alone."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode("utf-8", "replace")).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def order_of(case: Case, repeat: int, plan: Plan) -> tuple[int, ...]:
    """Places of the options in the order in which they are shown."""
    places = range(len(case.options))
    if not plan.shuffle:
        return tuple(places)
    return tuple(int(one) for one in generator(plan.seed, "order", case.id, repeat).permutation(len(places)))


def prompt_of(case: Case, mode: Mode, repeat: int, plan: Plan) -> Prompt:
    """What is asked."""
    hint = wrong_hint(case, mode, generator(plan.seed, "hint", case.id)) if mode in HINTED else ""
    return prompt(case, mode, order=order_of(case, repeat, plan), style=plan.style, hint=hint)


def unseen(cases: Sequence[Case], plan: Plan) -> dict[str, str]:
    """Reasons by the id of a case whose picture cannot be opened, where a mode shows it."""
    found = {}
    if any(mode in SEEING for mode in plan.modes):
        for case in cases:
            try:
                for path in case.images:
                    open_image(path)
            except BadSample as error:
                found[case.id] = str(error)
    return found


def run(
    cases: CaseSet,
    respondent: Respondent,
    plan: Plan,
    out: str | Path,
    tell: Callable[[int, int], object] | None = None,
) -> list[Answered]:
    """Ask, and keep the replies in `out`/replies.jsonl; what is there already is not asked again, unless nothing came.

    A case is not asked in a mode for which it lacks the text or a picture that can be opened.

    Args:
        tell: is handed how many were answered and how many there are.

    Raises:
        UserError: `out` holds replies to other cases, of another model or plan, or as the respondent.
        DataError: its replies are damaged.
    """  # fmt: skip
    file = Path(out) / REPLIES
    head = {
        "version": VERSION, "cases": cases.fingerprint(), "model": respondent.name,
        "plan": {name: value for name, value in asdict(plan).items() if name not in ("modes", "repeats", "together")},
    }  # fmt: skip
    blind = unseen(cases.cases, plan)
    for id, why in blind.items():
        _log.warning("case %s is asked without its picture: %s", id, why)
    seen = [replace(one, images=()) if one.id in blind else one for one in cases.cases]
    wanted = [
        (case, mode, repeat) for repeat in range(plan.repeats) for case in seen for mode in plan.modes
        if shows(case, mode)
    ]  # fmt: skip
    if not wanted:
        raise UserError(f"no case of {cases.name} has what the modes {', '.join(plan.modes)} need")
    kept = {one.key: one for one in _resumed(file, head)} if file.is_file() else {}
    lines = [] if file.is_file() else [head]
    left = [one for one in wanted if _key(*one) not in kept or kept[_key(*one)].problem]
    for start in range(0, len(left), plan.together):
        if tell is not None:
            tell(len(wanted) - len(left) + start, len(wanted))
        found = _asked(left[start : start + plan.together], respondent, plan)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8", newline="\n") as opened:
            opened.writelines(
                json.dumps(one, ensure_ascii=False) + "\n" for one in [*lines, *(asdict(one) for one in found)]
            )
        kept.update((one.key, one) for one in found)
        lines = []
    if tell is not None:
        tell(len(wanted), len(wanted))
    return [kept[_key(*one)] for one in wanted]


def _key(case: Case, mode: Mode, repeat: int) -> tuple[str, str, int]:
    return case.id, mode, repeat


def _asked(part: Sequence[tuple[Case, Mode, int]], respondent: Respondent, plan: Plan) -> list[Answered]:
    prompts = [prompt_of(*one, plan) for one in part]
    seeds = [int(generator(plan.seed, "draw", *_key(*one)).integers(2**31)) for one in part]
    began = time.monotonic()
    replies: list[Reply] = respondent.answer(prompts, temperature=plan.temperature, seeds=seeds)
    seconds = round((time.monotonic() - began) / len(part), 3)
    return [
        Answered(
            case.id, mode, repeat, order_of(case, repeat, plan), _unicode(reply.text), _unicode(reply.problem),
            reply.tries, seconds,
        )
        for (case, mode, repeat), reply in zip(part, replies, strict=True)
    ]  # fmt: skip


def _unicode(text: str) -> str:
    """`text` without halves of surrogate pairs, which broken escapes leave and no file takes."""
    return text.encode("utf-8", "replace").decode()


def _resumed(file: Path, head: dict[str, Any]) -> list[Answered]:
    """What an earlier run left in `file`; its last line is cut off where it is half written."""
    raw = file.read_bytes()
    whole, _, half = raw.rpartition(b"\n")
    try:
        was, *rows = [json.loads(line) for line in whole.decode("utf-8").split("\n")]
        plan, now = dict(was["plan"]), head["plan"]
        answered = [Answered(**{**row, "order": tuple(row["order"])}) for row in rows]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{file} is no record of replies; move it away or choose another --out") from error
    for name, ours, theirs in (
        *((name, head[name], was.get(name)) for name in ("version", "cases", "model")),
        *((name, now[name], plan.get(name)) for name in now),
    ):
        if ours != theirs:
            raise UserError(f"{file} is of another run: its {name} is {theirs!r}, now {ours!r}; choose another --out")
    if half:
        with open(file, "r+b") as opened:
            opened.truncate(len(raw) - len(half))
    return answered
