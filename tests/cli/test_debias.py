"""`tessera ask`, `caption` and `chat` with --debias: what is said without looking is taken off the answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from transformers import LogitsProcessorList

import tessera
from tessera.cli import main
from tessera.cli.using import Ask
from tessera.data.sample import Image, Text
from tessera.generate.debias import Debiasing, VisualDebias
from tessera.generate.meaningless import KINDS, meaningless
from tessera.generate.prompts import collate
from tests.vision_chat_tiny import noise, vision_chat

Refused = Callable[..., str]
ASKED = ["what?", "which colour is it?"]
STRONG = ["--alpha", "4", "--beta", "0.001"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seeing") / "model"
    vision_chat().save(place)
    return place


@pytest.fixture
def picture(here: Path) -> str:
    noise(0, 40, 30).save(here / "0.png")
    return "0.png"


def asked(capsys: pytest.CaptureFixture[str], picture: str, folder: Path, *options: str) -> list[str]:
    """The answers of the command line."""
    assert main(["ask", picture, *ASKED, "--model", str(folder), "--json", *options]) == 0
    return [row["answer"] for row in json.loads(capsys.readouterr().out)]


@pytest.mark.light("vdd", "use")
@pytest.mark.parametrize("kind", ["none", "noise"])
def test_questions_asked_with_debias_are_answered_as_the_processor_has_it(
    kind: str, folder: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, said = tessera.load(folder), []
    ends = [chat.tokenizer.eos_token_id]
    for question in ASKED:
        prompt = chat.builder.prompt((Image(picture, False, role="user"), Text(question, False, "user")))
        inputs = collate([prompt], chat.pixels, pad_id=0)
        blind = meaningless(inputs, kind, image_token_id=chat.model.config.image_token_id)
        debias = LogitsProcessorList([VisualDebias(chat.model, blind, alpha=4, beta=0.001)])
        ids = chat.model.generate(
            **inputs, logits_processor=debias, max_new_tokens=64, do_sample=False, eos_token_id=ends
        )
        said.append(chat.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    answers = asked(capsys, picture, folder, "--debias", kind, *STRONG)
    assert answers == said
    assert answers != asked(capsys, picture, folder)


@pytest.mark.light("vdd", "use")
@pytest.mark.parametrize("kind", ["none", "zeros"])
def test_without_strength_and_cut_the_answers_are_those_of_the_model(
    kind: str, folder: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ["--debias", kind, "--alpha", "0", "--beta", "0"]
    assert asked(capsys, picture, folder, *nothing) == asked(capsys, picture, folder)


@pytest.mark.light("vdd", "use")
def test_captions_and_dialogues_are_debiased_as_from_python(
    folder: Path, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = tessera.load(folder)
    plain = chat.caption(picture)
    chat.debias = Debiasing(kind="ones", alpha=4, beta=0.001)
    options = ["--model", str(folder), "--debias", "ones", *STRONG]
    assert main(["caption", picture, *options]) == 0
    caption = capsys.readouterr().out.strip()
    assert caption == chat.caption(picture).strip() != plain
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASKED[0]}\n{ASKED[1]}\n"))
    assert main(["chat", "--image", picture, *options]) == 0
    turns = [Image(picture, False, role="user"), Text(ASKED[0], False, "user")]
    (one,) = chat.chat(turns)
    (two,) = chat.chat([*turns, Text(one, role="assistant"), Text(ASKED[1], False, "user")])
    assert capsys.readouterr().out.split() == f"{one} {two}".split()


def test_a_question_in_words_alone_is_refused(folder: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("what?\n"))
    said = refused("chat", "--model", folder, "--debias", "none")
    assert "an answer to words alone cannot be debiased; show a picture first" in said


def test_a_model_that_cannot_be_debiased_is_named(picture: str, model: Path, refused: Refused) -> None:
    said = refused("ask", picture, "what?", "--model", model, "--debias", "none")
    assert f"the Assistant in {model} cannot be debiased; leave out --debias" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--alpha", "1"], "--alpha is of debiasing; name what to contrast with, --debias none"),
        (["--debias", "nune"], "--debias does not know 'nune'; did you mean 'none'?"),
        (["--debias", "none", "--alpha", "-1"], "alpha is -1.0; give 0 (no contrast) or more"),
        (["--debias", "none", "--beta", "2"], "beta is 2.0; give a share from 0 (all words) to 1"),
        (["--debias", "unk"], "'unk' needs the tokenizer's unknown word"),
    ],
)
def test_options_that_make_no_contrast_are_refused(
    options: list[str], sentence: str, picture: str, folder: Path, refused: Refused
) -> None:
    assert sentence in refused("ask", picture, "what?", "--model", folder, *options)


def test_the_commands_know_every_kind_of_meaningless_picture() -> None:
    kinds, _ = get_args(get_type_hints(Ask)["debias"])
    assert get_args(kinds) == KINDS
