"""A Sample as one run of tokens: words by the tokenizer, a picture as [IMG], N placeholders, [/IMG].

Labels come from the spans of the segments, which are tokenised one by one; no string is ever split to find
them.

Running text reads `<s> segment segment ... </s>`. A dialogue (any segment with a role) reads
`<s> system USER: question ASSISTANT: answer</s>USER: ...`; markers, the system message and what the user
shows or says are never learned, the assistant's segments and the end token after them are.

Shapes: L positions of one sequence; N positions of a picture between its two delimiters.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tessera.data.quality import check_text
from tessera.data.sample import Image, Sample, Segment, Text
from tessera.errors import BadSample, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

IGNORED = -100  # the label of what is no target: PyTorch's own default for cross-entropy
SYSTEM = "You are a helpful assistant."
OPEN, CLOSE, PLACE = "[IMG]", "[/IMG]", "<image>"
_MARKERS = {"user": "USER:", "assistant": "ASSISTANT:"}


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sample as tokens.

    input_ids int32 [L]; labels int64 [L], unshifted, -100 where the position is not a text target;
    visual_target bool [L], where the position's embedding is to be regressed; images in the order of their
    placeholders.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    visual_target: np.ndarray
    images: tuple[Image, ...]
    id: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)


def check_length(length: int, limit: int) -> None:
    """Raise BadSample where a sequence of `length` positions is over `limit`: nothing is ever cut."""
    if length > limit:
        raise BadSample(
            f"the sample needs {length} tokens, limit {limit}; shorten the text, or give it room in longer rows"
        )


class Tape:
    """Positions as they are written, one list for each field of a Sequence."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.visual: list[bool] = []
        self.images: list[Image] = []

    def words(self, ids: Seq[int], learned: bool) -> None:
        self.ids += ids
        self.labels += ids if learned else [IGNORED] * len(ids)
        self.visual += [False] * len(ids)

    def places(self, ids: Seq[int], learned: bool) -> None:
        self.ids += ids
        self.labels += [IGNORED] * len(ids)
        self.visual += [learned] * len(ids)


def copied(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The tokenizer's rules, as a copy that neither cuts nor pads."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


class SequenceBuilder:
    """Samples to Sequences.

    Args:
        tokenizer: a fast tokenizer that has `[IMG]`, `[/IMG]`, `<image>`, and begin and end tokens. It is not
            changed.
        num_image_positions: N, placeholders of one picture.
        max_length: positions that a sequence may have.
        system: what a dialogue without a system message begins with; "" leaves it out.

    Raises:
        UserError: the tokenizer lacks one of those tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        num_image_positions: int,
        max_length: int = 512,
        system: str = SYSTEM,
    ) -> None:
        self.num_image_positions = num_image_positions
        self.max_length = max_length
        self.system = system
        # A copy of our own, in which the text '[IMG]' in a user's caption is five characters, not a picture.
        self._backend = copied(tokenizer)
        self._backend.encode_special_tokens = True
        self._read_marks(tokenizer)
        # SentencePiece-style tokenizers put a space before every text by themselves.
        first = self._backend.encode("a", add_special_tokens=False).tokens[0]
        self._space = "" if first.startswith("\u2581") else " "
        self._markers = {
            (role, start): self.encode(marker if start else self._space + marker)
            for role, marker in _MARKERS.items()
            for start in (True, False)
        }

    def _read_marks(self, tokenizer: PreTrainedTokenizerFast) -> None:
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (OPEN, CLOSE, PLACE) if token not in vocabulary]
        if missing or tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer lacks {', '.join(missing) or 'a begin or end token'};"
                " add them with tokenizer.add_special_tokens before building sequences"
            )
        self.bos_id, self.eos_id = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
        self.begin = [self.bos_id]
        self.open_id, self.close_id, self.place_id = vocabulary[OPEN], vocabulary[CLOSE], vocabulary[PLACE]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def build(self, sample: Sample) -> Sequence:
        """The whole sample, with its targets.

        Raises:
            BadSample: longer than `max_length`; nothing in it is learned; an empty or over-long text; a role
                or a kind of segment that has no place in a sequence.
        """
        sequence = self._lay_out(sample.segments, sample.id, closed=True)
        if not (np.any(sequence.labels != IGNORED) or sequence.visual_target.any()):
            raise BadSample("the sample has nothing to learn: no learned segment, and in a dialogue no assistant turn")
        return sequence

    def prompt(self, segments: Iterable[Segment] | Sample, lead_in: str = "", *, draw: bool = False) -> Sequence:
        """What a generation starts from: `segments`, left open, with nothing marked as learned.

        A dialogue that ends with the user gets the assistant's marker; then comes `lead_in`, such as "Short
        answer:", and where `draw` is set an open [IMG].

        Raises:
            BadSample: as `build`.
        """
        run = tuple(segments.segments if isinstance(segments, Sample) else segments)
        chat = any(getattr(segment, "role", None) for segment in run)
        if lead_in:
            run = (*run, Text(lead_in, learned=False, role="assistant" if chat else None))
        built = self._lay_out(run, "", closed=False)
        tail = self._tail(chat and self._roles(run)[-1] != "assistant", draw)
        ids = np.concatenate([built.input_ids, np.asarray(tail, np.int32)])
        check_length(len(ids), self.max_length)
        return replace(
            built,
            input_ids=ids,
            labels=np.full(len(ids), IGNORED, np.int64),
            visual_target=np.zeros(len(ids), bool),
        )

    def _tail(self, answer: bool, draw: bool) -> list[int]:
        """What ends a prompt: the assistant's marker, an open [IMG]."""
        return [*(self._markers["assistant", False] if answer else []), *([self.open_id] if draw else [])]

    def _lay_out(self, segments: tuple[Segment, ...], name: str, closed: bool) -> Sequence:
        tape = Tape()
        if any(getattr(segment, "role", None) for segment in segments):
            self._dialogue(tape, segments, closed)
        else:
            self._running(tape, segments, closed)
        check_length(len(tape.ids), self.max_length)
        return Sequence(
            np.asarray(tape.ids, np.int32),
            np.asarray(tape.labels, np.int64),
            np.asarray(tape.visual, bool),
            tuple(tape.images),
            name,
        )

    def _running(self, tape: Tape, segments: tuple[Segment, ...], closed: bool) -> None:
        tape.words(self.begin, False)
        before: Segment | None = None
        learned = False
        for segment in segments:
            # Text after text is set apart by a space; text after a picture or at the start is not.
            apart = isinstance(before, Text) and not before.text[-1:].isspace()
            learned = self._write(tape, segment, segment.learned, spaced=apart)
            before = segment
        if closed:
            tape.words([self.eos_id], learned)

    def _dialogue(self, tape: Tape, segments: tuple[Segment, ...], closed: bool) -> None:
        tape.words(self.begin, False)
        roles = self._roles(segments)
        if roles[0] != "system" and self.system:
            tape.words(self.encode(self.system), False)
        speaker, learned = "", False
        for segment, role in zip(segments, roles, strict=True):
            if role != speaker:
                if speaker == "assistant":
                    tape.words([self.eos_id], learned)
                if role != "system":
                    start = len(tape.ids) == 1 or speaker == "assistant"
                    tape.words(self._markers[role, start], False)
                speaker, learned = role, False
            learned = self._write(tape, segment, segment.learned and role == "assistant", len(tape.ids) > 1)
        if closed and speaker == "assistant":
            tape.words([self.eos_id], learned)

    def _write(self, tape: Tape, segment: Segment, learned: bool, spaced: bool) -> bool:
        """Write one segment and return whether it is learned."""
        if isinstance(segment, Text):
            check_text(segment.text)
            space = self._space if spaced and not segment.text[:1].isspace() else ""
            tape.words(self.encode(space + segment.text), learned)
        elif isinstance(segment, Image):
            self._picture(tape, segment, learned)
        else:
            kind = type(segment).__name__
            raise BadSample(f"a {kind} segment has no place in a sequence of words and pictures")
        return learned

    def _picture(self, tape: Tape, image: Image, learned: bool) -> None:
        tape.words([self.open_id], learned)
        tape.places([self.place_id] * self.num_image_positions, learned)
        tape.words([self.close_id], learned)
        tape.images.append(image)

    @staticmethod
    def _roles(segments: tuple[Segment, ...]) -> list[str]:
        """The speaker of each segment; a segment without a role continues the turn before it, at first the
        user's."""
        roles: list[str] = []
        for segment in segments:
            role = getattr(segment, "role", None) or (roles[-1] if roles else "user")
            if role not in ("system", "user", "assistant"):
                raise BadSample(f"unknown role {role!r}; known are system, user, assistant")
            roles.append(role)
        return roles
