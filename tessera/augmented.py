"""A language model with injected class tokens in use: pictures and questions in, sentences out.

seeing = tessera.load("runs/ep-alm/model")
seeing.caption(image), seeing.answer(image, "how many stars?")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, overload

import torch
from transformers import PreTrainedTokenizerFast

from tessera.cards import read_card, write_card
from tessera.data.beside import Beside
from tessera.data.sample import Image, Still
from tessera.errors import CheckpointError, UserError, nearest, reason
from tessera.files import atomic_folder, write_json
from tessera.models.folder import read_folder
from tessera.models.injected import InjectedLMForConditionalGeneration
from tessera.models.injected.modeling import TRAINED
from tessera.train.injected import look
from tessera.weights import write_model
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import locate, quiet

KIND = "injected-lm"
PARTS = "parts.json"  # which frozen parts belong to what was trained, where they are not in the folder
ROLES = ("vision", "language")
LONGEST = 1024  # words of a prompt where the language model sets no limit
_TOGETHER = 64  # prompts that are continued at once


@dataclass
class Augmented:
    """An InjectedLMForConditionalGeneration with its tokenizer. All calls take one input or a list of them, and answer
    in kind.

    Args:
        beams: as many sentences are followed at once, and the likeliest is said; the paper takes 3.
    """

    model: InjectedLMForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    beams: int = 3
    max_new_tokens: int = 64

    abilities: ClassVar[tuple[str, ...]] = ("caption", "ask")

    def __post_init__(self) -> None:
        config = self.model.config
        self.builder = Beside(self.tokenizer, config.ask, config.context or LONGEST)

    @overload
    def caption(self, images: Still) -> str: ...
    @overload
    def caption(self, images: list[Still]) -> list[str]: ...
    def caption(self, images):
        """A sentence about each picture.

        Raises:
            UserError: the tokenizer has no begin token, without which a caption cannot begin.
            BadSample: a picture cannot be read.
        """
        single = not isinstance(images, list | tuple)
        pictures = [images] if single else list(images)
        start = self.builder.prompt(None)
        if not start:
            raise UserError("this language model has no begin token, so it cannot begin a caption; ask it a question")
        said = self._continue(pictures, [start] * len(pictures))
        return said[0] if single else said

    @overload
    def answer(self, images: Still, questions: str) -> str: ...
    @overload
    def answer(self, images: list[Still], questions: str | list[str]) -> list[str]: ...
    def answer(self, images, questions):
        """The answer to each question about the picture beside it, or to the one question.

        Raises:
            UserError: other numbers of pictures and questions.
            BadSample: a picture cannot be read, or a question is empty or too long.
        """
        single = not isinstance(images, list | tuple)
        pictures = [images] if single else list(images)
        asked = [questions] * len(pictures) if isinstance(questions, str) else list(questions)
        if len(asked) != len(pictures):
            raise UserError(f"{len(pictures)} pictures and {len(asked)} questions; give one question for each picture")
        said = self._continue(pictures, [self.builder.prompt(one) for one in asked])
        return said[0] if single else said

    def _continue(self, pictures: Sequence[Still], prompts: Sequence[list[int]]) -> list[str]:
        found: list[str] = []
        end = self.tokenizer.eos_token_id
        for start in range(0, len(prompts), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            ids, mask = (one.to(self.model.device) for one in self.builder.left(prompts[part]))
            said = self.model.generate(
                ids, attention_mask=mask, class_states=look(self.model, [Image(one) for one in pictures[part]]),
                num_beams=self.beams, do_sample=False, max_new_tokens=self.max_new_tokens, eos_token_id=end,
                pad_token_id=self.builder.pad_id,
            )  # fmt: skip
            found += self.tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
        return [one.strip() for one in found]

    def save(self, folder: str | Path, parts: Mapping[str, str] | None = None) -> None:
        """Write the model folder: the whole model with its tokenizer as transformers lays them out.

        Args:
            parts: names or folders of the frozen "vision" and "language"; with them what was trained alone is written.
        """
        with atomic_folder(folder) as aside, quiet():
            if parts is None:
                write_model(self.model, aside)
            else:
                self.model.save_trained(aside)
                write_json(aside / PARTS, {role: parts[role] for role in ROLES})
            self.tokenizer.save_pretrained(aside)
            write_card(aside, KIND)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> Augmented:
    """What `Augmented.save` wrote, in evaluation mode.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, one of another kind or version, a configuration with an unknown key or a wrong
            value, or a part that is absent, damaged, pickled or does not fit.
    """
    folder = Path(folder)
    read_card(folder, KIND)
    with quiet():
        tokenizer = read_tokenizer(folder)
        if not (folder / TRAINED).is_file():
            return Augmented(read_folder(folder, InjectedLMForConditionalGeneration, dtype, device), tokenizer)
        model = InjectedLMForConditionalGeneration.from_trained(folder, *(locate(one) for one in _parts(folder)))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.nn.Module.to(model, place, dtype)
    return Augmented(model, tokenizer)


def _parts(folder: Path) -> list[str]:
    """Names or folders of the frozen parts, in the order of ROLES."""
    try:
        named = json.loads((folder / PARTS).read_text(encoding="utf-8"))
        return [str(named[role]) for role in ROLES]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / PARTS} does not name the frozen parts: {reason(error)}") from error


def check_roles(parts: Mapping[str, str]) -> None:
    """Raise UserError where a role of `parts` is none of ROLES."""
    for role in parts:
        if role not in ROLES:
            raise UserError(f"there is no part {role!r} here{nearest(role, ROLES)}")
