"""A model of this library as lmms-eval 0.7 drives one: of its "chat" kind, so a task hands over messages in which words
and pictures stand in their order. Only lmms-eval imports this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from lmms_eval.api.model import lmms

from tessera.data.readers.llava import TAG
from tessera.data.sample import Image, Segment, Text
from tessera.errors import UserError
from tessera.loading import load

MAX_NEW_TOKENS = 1024  # where a task sets no number, as lmms-eval's own models do
_PASSED = ("temperature", "top_p", "num_beams")  # of a task's settings, what `generate` takes as it is


class TesseraModel(lmms):
    """Answers of a loaded model to the messages of lmms-eval's tasks.

    Args:
        pretrained: what `tessera.load` takes.
        device: as PyTorch names it; by default "cuda" where PyTorch has it.
        batch_size: dialogues that a task hands over at once.
        max_batch_size: not used; lmms-eval gives it to every model.

    Raises:
        UserError: the model neither chats nor answers questions.
        CheckpointError: as `tessera.load`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = int(batch_size)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.used = load(pretrained, device=str(self.device))
        if not {"chat", "ask"} & set(self.used.abilities):
            able = ", ".join(self.used.abilities)
            raise UserError(f"the {type(self.used).__name__} in {pretrained} neither chats nor answers; it can {able}")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, cut where a text of its `until` begins."""
        found = [""] * len(requests)
        for settings, places in _alike(requests):
            waiting = iter(places)
            while part := list(islice(waiting, self.batch_size)):
                answers = self._answers([self._dialogue(requests[place]) for place in part], settings)
                for place, answer in zip(part, answers, strict=True):
                    found[place] = _cut(answer, settings.get("until"))
                    self.cache_hook.add_partial("generate_until", requests[place].args, found[place])
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: lmms-eval asks its simple models alone for it."""
        raise UserError("tessera answers tasks of lmms-eval that generate; choose a task of output type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused."""
        raise UserError("tessera answers each task of lmms-eval in one round; choose a task of type generate_until")

    def _dialogue(self, request: Any) -> list[Segment]:
        _, to_messages, _, number, task, split = request.args
        return segments(to_messages(self.task_dict[task][split][number]))

    def _answers(self, dialogues: list[list[Segment]], settings: Mapping[str, Any]) -> list[str]:
        most = int(settings.get("max_new_tokens", MAX_NEW_TOKENS))
        if hasattr(self.used, "replies"):
            return self.used.replies(dialogues, max_new_tokens=most, **_options(settings))
        if _options(settings):
            raise UserError(f"a {type(self.used).__name__} takes the best word each time; the task asks for {settings}")
        if "chat" in self.used.abilities:
            said = [self.used.chat(dialogue, max_new_tokens=most) for dialogue in dialogues]
            return [" ".join(part for part in parts if isinstance(part, str)) for parts in said]
        pictures, questions = zip(*(_one(dialogue) for dialogue in dialogues), strict=True)
        return self.used.answer(list(pictures), list(questions))


def segments(messages: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """Messages of lmms-eval as segments: each has a "role" and as "content" a list of {"type": "text", "text": ...} and
    {"type": "image", "url": ...}, where the last is a picture or its path.

    Raises:
        UserError: a message holds something else than words and pictures.
    """
    found: list[Segment] = []
    for message in messages:
        for part in message["content"]:
            if part["type"] == "text":
                text = part["text"].replace(TAG, " ").strip()  # pictures are parts of their own here
                found += [Text(text, False, message["role"])] if text else []
            elif part["type"] == "image":
                found.append(Image(part["url"], False, role=message["role"]))
            else:
                raise UserError(f"the task shows {part['type']}, and tessera reads words and pictures alone")
    return found


def _alike(requests: Sequence[Any]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Places of the requests with the same settings, and these."""
    groups: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(place)
    for places in groups.values():
        yield dict(requests[places[0]].args[2]), places


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings as options of `generate`; none where they mean the best word each time."""
    chosen = {name: value for name in _PASSED if (value := settings.get(name)) is not None}
    if not chosen.get("temperature") or settings.get("do_sample") is False:
        return {"num_beams": chosen["num_beams"]} if chosen.get("num_beams", 1) > 1 else {}
    return {"do_sample": True, **chosen}


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    for end in [until] if isinstance(until, str) else until or []:
        answer = answer.partition(end)[0] if end else answer
    return answer.strip()


def _one(dialogue: Sequence[Segment]) -> tuple[Any, str]:
    """The one picture and the words of a dialogue of one question."""
    pictures = [one.source for one in dialogue if isinstance(one, Image)]
    words = [one.text for one in dialogue if isinstance(one, Text)]
    if len(pictures) != 1 or not words:
        raise UserError(f"this model answers a question about one picture, and the task shows {len(pictures)}")
    return pictures[0], " ".join(words)
