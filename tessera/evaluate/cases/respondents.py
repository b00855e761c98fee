"""Who answers: a trained model of this library, or an endpoint (`tessera.evaluate.cases.endpoint`).

A respondent gets each case by itself, in a dialogue that begins with it; what cannot be answered is recorded as no
response with its reason, and does not end a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tessera.data.sample import Image, Segment, Text
from tessera.errors import BadSample, TesseraError, UserError
from tessera.evaluate.cases.prompting import Prompt


@dataclass(frozen=True, slots=True)
class Reply:
    """What was said. `problem` says why nothing came; `tries` how often it was asked for."""

    text: str = ""
    problem: str = ""
    tries: int = 1


class Respondent(Protocol):
    """A model that answers cases. `name` says which one, for the record."""

    name: str

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seeds: Sequence[int]) -> list[Reply]:
        """A reply to each prompt; at a temperature of 0 the likeliest one, else one drawn from the seed beside it."""
        ...


@dataclass
class Loaded:
    """A model as `tessera.load` gives it: one that chats is asked anything, one that only answers questions about a
    picture is asked those.

    Args:
        length: words of a reply, at most.
    """

    model: Any
    name: str
    length: int = 64

    def answer(self, prompts: Sequence[Prompt], *, temperature: float, seeds: Sequence[int]) -> list[Reply]:
        """A reply to each prompt.

        Raises:
            UserError: the model cannot draw its words, or cannot do without a picture, or none of several prompts can
                be answered.
        """
        if temperature > 0:
            if not hasattr(self.model, "replies"):
                raise UserError(f"the {type(self.model).__name__} draws no words; leave --temperature at 0")
            return [
                self._alone(one, partial(self._drawn, temperature=temperature, seed=seed))
                for one, seed in zip(prompts, seeds, strict=True)
            ]
        try:
            return [Reply(text) for text in self._said(prompts)]
        except (BadSample, UserError) as error:
            if len(prompts) == 1:
                return [Reply(problem=str(error))]
            found = [self._alone(one, self._said) for one in prompts]
            if all(one.problem for one in found):  # no matter of one case, but of the model or how it is asked
                raise UserError(str(error)) from error
            return found

    def _alone(self, one: Prompt, say: Callable[[Sequence[Prompt]], list[str]]) -> Reply:
        try:
            return Reply(say([one])[0])
        except TesseraError as error:
            return Reply(problem=str(error))

    def _said(self, prompts: Sequence[Prompt]) -> list[str]:
        if hasattr(self.model, "replies"):
            said: list[str] = self.model.replies([_turn(one) for one in prompts], max_new_tokens=self.length)
            return said
        if all(len(one.images) == 1 for one in prompts):
            return list(self.model.answer([one.images[0] for one in prompts], [one.text for one in prompts]))
        if not hasattr(self.model, "chat"):
            raise UserError(
                f"the {type(self.model).__name__} answers questions about one picture, and here are some with"
                f" {sorted({len(one.images) for one in prompts})}; ask it with --modes image both"
            )
        chats = (self.model.chat(_turn(one), max_new_tokens=self.length) for one in prompts)
        return [" ".join(part for part in parts if isinstance(part, str)) for parts in chats]

    def _drawn(self, prompts: Sequence[Prompt], *, temperature: float, seed: int) -> list[str]:
        import torch  # a run over an endpoint needs none

        torch.manual_seed(seed)
        said: list[str] = self.model.replies(
            [_turn(one) for one in prompts], max_new_tokens=self.length, do_sample=True, temperature=temperature,
            top_k=0, top_p=1.0,
        )  # fmt: skip
        return said


def _turn(one: Prompt) -> list[Segment]:
    """The only turn of a dialogue."""
    return [*(Image(path, learned=False, role="user") for path in one.images), Text(one.text, False, "user")]
