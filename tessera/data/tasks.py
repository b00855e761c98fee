"""What is asked of a sample: pairs in both orders for pre-training, instructions and answers for tuning.

Each task is a function (sample, rng) -> Sample. `Mapped` lays one over a source; the loader gives it a
generator made from (seed, epoch, index), so that a pair is met in other words each epoch and in the same
words on each run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tessera.data.mixture import Mixture
from tessera.data.sample import Image, Sample, Segment, Text
from tessera.data.source import Source, Split, World
from tessera.errors import BadSample, UserError, nearest

Task = Callable[[Sample, np.random.Generator], Sample]

CAPTION_REQUESTS = (
    "Describe this picture in one sentence.",
    "What does the picture show?",
    "Provide a brief description of the picture.",
    "Give a short caption for this picture.",
    "What do you see here?",
    "Write one sentence about this picture.",
    "Summarise the picture in a few words.",
    "Please caption this picture.",
)
DRAW_REQUESTS = (
    "Draw a picture: {}",
    "Create a picture for this description: {}",
    "Please draw: {}",
    "Generate a picture of this: {}",
    "Show me a picture that fits these words: {}",
    "Make a picture of the following. {}",
    "Paint what I describe: {}",
    "I would like a picture of this: {}",
)
DRAW_ANSWERS = ("Here it is.", "Here is the picture.", "This is what you described.", "Here you are.")
EDIT_ANSWERS = ("Here is the changed picture.", "Done.", "This is the result.", "I changed it.")


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of `options`."""
    return options[int(rng.integers(len(options)))]


def _picture_and_text(sample: Sample) -> tuple[Image, Text]:
    images = sample.images
    texts = [segment for segment in sample.segments if isinstance(segment, Text)]
    if len(images) != 1 or len(texts) != 1:
        raise BadSample(f"a pair is one picture and one text, this sample has {len(images)} and {len(texts)}")
    return images[0], texts[0]


def pair_order(sample: Sample, rng: np.random.Generator) -> Sample:
    """A pair with its picture first or its text first, at even chances; both are learned."""
    image, text = _picture_and_text(sample)
    segments: tuple[Segment, ...] = (replace(image, learned=True), replace(text, learned=True))
    return replace(sample, segments=segments if rng.random() < 0.5 else segments[::-1])


def caption(sample: Sample, rng: np.random.Generator) -> Sample:
    """A pair as a dialogue: the user shows the picture and asks for a caption, the assistant gives it."""
    image, text = _picture_and_text(sample)
    shown = replace(image, learned=False, role="user")
    asked = Text(pick(CAPTION_REQUESTS, rng), learned=False, role="user")
    return replace(sample, segments=(shown, asked, replace(text, learned=True, role="assistant")))


def draw(sample: Sample, rng: np.random.Generator) -> Sample:
    """A pair as a dialogue: the user gives the caption, the assistant answers with a phrase and the picture.

    Of a picture with a canonical sentence, every second time that: it says more of what is to be drawn than most
    captions do (as the captions that DALL-E 3 learned from, Betker et al. 2023).
    """
    image, text = _picture_and_text(sample)
    wanted = sample.meta["canonical"] if "canonical" in sample.meta and rng.random() < 0.5 else text.text
    asked = Text(pick(DRAW_REQUESTS, rng).format(wanted), learned=False, role="user")
    said = Text(pick(DRAW_ANSWERS, rng), role="assistant")
    return replace(sample, segments=(asked, said, replace(image, learned=True, role="assistant")))


def edit(sample: Sample, rng: np.random.Generator) -> Sample:
    """(before, instruction, after) as a dialogue. Where an edit is impossible the third segment is a text
    that says so, and that text is the answer."""
    if len(sample.segments) != 3:
        raise BadSample(f"an edit is a picture, an instruction and a result, this sample has {len(sample.segments)}")
    before, instruction, after = sample.segments
    if not (isinstance(before, Image) and isinstance(instruction, Text) and isinstance(after, Image | Text)):
        raise BadSample("an edit is a picture, an instruction and a result, in this order")
    asked = (replace(before, learned=False, role="user"), replace(instruction, learned=False, role="user"))
    answer = replace(after, learned=True, role="assistant")
    if isinstance(answer, Text):
        return replace(sample, segments=(*asked, answer))
    return replace(sample, segments=(*asked, Text(pick(EDIT_ANSWERS, rng), role="assistant"), answer))


def chat(sample: Sample, rng: np.random.Generator | None = None) -> Sample:
    """A question or a conversation in dialogue form: what has a role keeps it; of the rest, learned segments
    are the assistant's and read ones the user's."""
    segments = []
    for segment in sample.segments:
        if not isinstance(segment, Text | Image):
            raise BadSample(f"a {type(segment).__name__} segment has no place in a dialogue")
        speaker = segment.role or ("assistant" if segment.learned else "user")
        segments.append(replace(segment, role=speaker, learned=segment.learned and speaker == "assistant"))
    return replace(sample, segments=tuple(segments))


class Mapped:
    """A source seen through a task. As a plain source (no epochs) it draws each sample's words from its index
    alone."""

    def __init__(self, source: Source, task: Task) -> None:
        self.source = source
        self.task = task
        self.name = f"{source.name} ({getattr(task, '__name__', type(task).__name__)})"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Sample:
        return self.draw(index, np.random.default_rng([index]))

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample `index` with its random choices, and those of a mapped source within, taken from `rng`."""
        inner = self.source.draw(index, rng) if isinstance(self.source, Mapped) else self.source[index]
        return self.task(inner, rng)

    def fingerprint(self) -> str:
        """That of the source, and the task's name."""
        return f"{self.source.fingerprint()}/{self.name}"


# What instruction tuning makes of each task that a world may have, with its share of the mixture.
INSTRUCTIONS: dict[str, tuple[tuple[str, Task, float], ...]] = {
    "pairs": (("caption", caption, 1.0), ("draw", draw, 1.0)),
    "questions": (("question", chat, 1.0),),
    "edits": (("edit", edit, 0.5),),
    "conversations": (("chat", chat, 1.0),),
}


def instructions(world: World, split: Split = "train", weights: dict[str, float] | None = None) -> Mixture:
    """A mixture of every instruction that `world` can give: caption, draw, question, edit, chat.

    Args:
        weights: other shares by those names; 0 leaves one out.

    Raises:
        UserError: a name that does not exist, or nothing left.
    """
    known = {name for rows in INSTRUCTIONS.values() for name, _, _ in rows}
    for name in weights or {}:
        if name not in known:
            raise UserError(f"unknown instruction {name!r}{nearest(name, known)}")
    parts = []
    for task in world.tasks:
        for name, function, share in INSTRUCTIONS.get(task, ()):
            weight = (weights or {}).get(name, share)
            if weight > 0:
                parts.append((Mapped(world.source(task, split), function), weight))
    if not parts:
        raise UserError(f"{world.name} has no instructions to learn from: it gives {', '.join(world.tasks)}")
    return Mixture(parts)
