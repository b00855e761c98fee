"""A Sample as a language model's own chat template writes it, each picture as N placeholders where it stands.

A dialogue is written whole by the template and then cut into tokens, as transformers does it; which tokens are learned
follows from where each answer of the assistant begins and ends in that text. Running text (a caption, a page) reads
`<s> segment segment ... </s>` as everywhere. Pictures are only read, never learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tessera.data.quality import check_text
from tessera.data.sample import Image, Segment, Text
from tessera.data.sequence import PLACE, SequenceBuilder, Tape, copied
from tessera.errors import BadSample, UserError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The form of LLaVA 1.5 and of Vicuna, for tokenizers that have none of their own.
LLAVA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_PROBE = "probe"


class ConversationBuilder(SequenceBuilder):
    """Samples to Sequences for a language model with eyes.

    Args:
        tokenizer: a fast tokenizer that has `image_token` and an end token. It is not changed.
        image_positions: N, placeholders of one picture; or a function of the picture, where that depends on its shape.
        max_length: positions that a sequence may have.
        chat_template: how dialogues are written, by default the tokenizer's own; `LLAVA` for instance.
        image_token: what stands for a picture in the template's text.
        system: what a dialogue without a system message begins with; "" leaves that to the template.

    Raises:
        UserError: the tokenizer lacks the image token or an end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_positions: int | Callable[[Image], int],
        max_length: int = 2048,
        *,
        chat_template: str | None = None,
        image_token: str = PLACE,
        system: str = "",
    ) -> None:
        self.image_token = image_token
        self._places = image_positions if callable(image_positions) else None
        super().__init__(tokenizer, 0 if callable(image_positions) else image_positions, max_length, system)
        self._tokenizer = tokenizer
        self._template = chat_template or tokenizer.chat_template
        self._marked = copied(tokenizer)  # in which marks that the template writes are marks
        self._whole: bool | None = None  # whether the template takes the words of a turn as one string

    def _read_marks(self, tokenizer: PreTrainedTokenizerFast) -> None:
        known = tokenizer.get_vocab()
        if self.image_token not in known or tokenizer.eos_token_id is None:
            lacking = "an end token" if self.image_token in known else self.image_token
            raise UserError(
                f"the tokenizer lacks {lacking}; add it with tokenizer.add_special_tokens before building sequences"
            )
        begin = tokenizer.bos_token_id
        # Some tokenizers have a begin token that their model never read; those that put it there say so.
        used = begin is not None and tokenizer("a").input_ids[:1] == [begin]
        self.begin, self.eos_id = [int(begin)] if used else [], int(tokenizer.eos_token_id)
        self.place_id = known[self.image_token]

    def _picture(self, tape: Tape, image: Image, learned: bool) -> None:
        count = self.num_image_positions if self._places is None else self._places(image)
        tape.places([self.place_id] * count, False)
        tape.images.append(image)

    def _tail(self, answer: bool, draw: bool) -> list[int]:
        if draw:
            raise UserError("a language model with eyes answers in words alone; it cannot begin a picture")
        return []  # the template has written it

    def _dialogue(self, tape: Tape, segments: tuple[Segment, ...], closed: bool) -> None:
        turns, learned = self._turns(segments)
        text = self._written(turns, closed)
        spans = [self._span(turns, place, text) for place in learned] if closed else []
        if self.begin and not text.startswith(begin := str(self._tokenizer.bos_token)):
            text, spans = begin + text, [(start + len(begin), end + len(begin)) for start, end in spans]
        encoded = self._marked.encode(text, add_special_tokens=False)
        images = [segment for segment in segments if isinstance(segment, Image)]
        if (marks := encoded.ids.count(self.place_id)) != len(images):
            raise BadSample(f"the chat template wrote {marks} marks for {len(images)} pictures")
        waiting, ending = iter(images), False
        for index, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if index == self.place_id:
                self._picture(tape, next(waiting), False)
                continue
            within = any(first <= start and end <= last for first, last in spans)  # one that reaches out is not
            tape.words([index], within)
            ending = index == self.eos_id or (ending and text[start:].isspace())
        if closed and turns[-1]["role"] == "assistant" and not ending:
            tape.words([self.eos_id], len(turns) - 1 in learned)

    def _turns(self, segments: tuple[Segment, ...]) -> tuple[list[dict[str, Any]], list[int]]:
        """Messages as templates take them, and the places of those that are learned."""
        runs: list[tuple[str, list[Text | Image]]] = []
        for segment, role in zip(segments, self._roles(segments), strict=True):
            if isinstance(segment, Text):
                check_text(segment.text)
                if self.image_token in segment.text:
                    raise BadSample(f"the text {segment.text[:40]!r} holds {self.image_token}, which marks a picture")
            elif not isinstance(segment, Image):
                raise BadSample(f"a {type(segment).__name__} segment has no place in a dialogue")
            if not runs or runs[-1][0] != role:
                runs.append((role, []))
            runs[-1][1].append(segment)
        if self.system and runs[0][0] != "system":
            runs.insert(0, ("system", [Text(self.system, learned=False)]))
        learned = []
        for place, (role, parts) in enumerate(runs):
            kinds = {part.learned for part in parts if isinstance(part, Text)} if role == "assistant" else set()
            if len(kinds) > 1:
                raise BadSample("an answer of the assistant is learned in part; give it as learned or as read")
            if True in kinds:
                learned.append(place)
        return [{"role": role, "content": self._content(parts)} for role, parts in runs], learned

    def _content(self, parts: list[Text | Image]) -> str | list[dict[str, str]]:
        if not self._takes_strings():
            return [
                {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part.text} for part in parts
            ]
        content, before = "", None
        for part in parts:
            if before is not None:  # a picture stands on a line of its own, as LLaVA writes it
                content += "\n" if isinstance(part, Image) or isinstance(before, Image) else " "
            content += self.image_token if isinstance(part, Image) else part.text
            before = part
        return content

    def _takes_strings(self) -> bool:
        """Whether the template writes a turn given as a string; those of processors want a list of parts."""
        if self._whole is None:
            self._whole = _PROBE in self._render([{"role": "user", "content": _PROBE}])
        return self._whole

    def _written(self, turns: list[dict[str, Any]], closed: bool) -> str:
        """The whole dialogue; left open, it ends where the assistant is to go on."""
        if closed:
            return self._render(turns)
        if turns[-1]["role"] == "assistant":
            return self._render(turns, continue_final_message=True)
        return self._render(turns, add_generation_prompt=True)

    def _span(self, turns: list[dict[str, Any]], place: int, text: str) -> tuple[int, int]:
        """Where answer `place` begins and ends in `text`, its end mark included."""
        before = self._render(turns[:place], add_generation_prompt=True)
        upto = self._render(turns[: place + 1])
        if not (text.startswith(upto) and upto.startswith(before)):
            raise BadSample(
                "the chat template writes a turn otherwise once another follows, so what is learned cannot be told;"
                " give a chat_template that does not"
            )
        return len(before), len(upto)

    def _render(self, turns: list[dict[str, Any]], **options: bool) -> str:
        if self._template is None:
            raise UserError(
                "the tokenizer has no chat template, which a dialogue needs; give chat_template, such as"
                " tessera.data.conversation.LLAVA"
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    chat_template=self._template,
                    **options,  # type: ignore[arg-type]
                )
            )
        except Exception as error:  # templates raise their own, and Jinja many kinds
            raise BadSample(f"the chat template refuses the dialogue: {reason(error)}") from error
