"""Small sets of cases, and respondents that need no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image as PIL

from tessera.evaluate.cases import Case, CaseSet, Reply
from tessera.evaluate.cases.prompting import Prompt

OPTIONS = ("Measles", "Rubella", "Kawasaki disease", "Hand, foot, and mouth disease", "Pityriasis rosea")


def case(number: int = 0, **fields) -> Case:
    """A case with a question that no prompt's own words contain, right at `number` modulo 5."""
    made = {"question": f"zebra{number} fever xylophone", "options": OPTIONS, "answer": number % 5}
    return Case(str(number), **{**made, **fields})


def picture(folder: Path, number: int = 0) -> Path:
    path = folder / f"{number}.png"
    PIL.new("RGB", (9, 7), (number % 256, 0, 0)).save(path)
    return path


def cases(number: int, folder: Path | None = None, **fields) -> CaseSet:
    """With a picture each where there is a folder for them."""
    shown = [{"images": (picture(folder, one),)} if folder else {} for one in range(number)]
    return CaseSet("made", tuple(case(one, **shown[one], **fields) for one in range(number)))


@dataclass
class Says:
    """Replies with what a function makes of a prompt, and keeps the prompts."""

    say: Callable[[Prompt, int], str]
    name: str = "says"
    prompts: list[Prompt] = field(default_factory=list)

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seeds: Sequence[int]) -> list[Reply]:
        self.prompts += prompts
        return [Reply(self.say(one, seed)) for one, seed in zip(prompts, seeds, strict=True)]


def oracle(made: CaseSet) -> Says:
    """Knows the right option by the words of the question, guesses the first one where it has none, and never looks."""
    truths = {one.question: one.options[one.answer] for one in made.cases}

    def say(asked: Prompt, _: int) -> str:
        found = re.search(r"^Case: (.*)$", asked.text, re.MULTILINE)
        first = re.search(r"^A\. (.*)$", asked.text, re.MULTILINE)
        assert first
        return f"[['{truths[found[1]] if found else first[1]}']]"

    return Says(say, "oracle")
