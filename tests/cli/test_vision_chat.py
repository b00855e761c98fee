"""`tessera chat`, `caption`, `ask` and `evaluate` with a language model with eyes, and what it does not do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.cli import main
from tests.vision_chat_tiny import noise, vision_chat

Refused = Callable[..., str]
WRONG = "CHAIR_s: of the captions, with an object that is not there"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seeing") / "model"
    vision_chat(needs_picture=True).save(place)
    return place


@pytest.fixture
def pictures(here: Path) -> list[str]:
    for number in range(2):
        noise(number, 40, 30).save(here / f"{number}.png")
    return ["0.png", "1.png"]


def _typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_chat_is_about_the_pictures_that_it_was_given_and_is_shown_later(
    folder: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tessera
    from tessera.data.sample import Image, Text

    _typed(monkeypatch, "which colour is it?", f"/image {pictures[1]}", "and <image> here?")
    assert main(["chat", "--model", str(folder), "--image", pictures[0]]) == 0
    transcript = capsys.readouterr().out
    chat = tessera.load(folder)
    first = [Image(pictures[0], False, role="user"), Text("which colour is it?", False, "user")]
    (one,) = chat.chat(first)
    second = [Image(pictures[1], False, role="user"), Text("and <image> here?", False, "user")]
    (two,) = chat.chat([*first, Text(one, role="assistant"), *second])
    assert transcript.split() == f"{one} {two}".split() and one != two


def test_pictures_are_captioned_and_asked_about(
    folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", *pictures, "--model", str(folder), "--json"]) == 0
    captions = [row["caption"] for row in json.loads(capsys.readouterr().out)]
    assert len(set(captions)) == 2
    assert main(["ask", pictures[0], "what?", "which colour?", "--model", str(folder), "--json"]) == 0
    assert [row["question"] for row in json.loads(capsys.readouterr().out)] == ["what?", "which colour?"]


def test_a_question_is_asked_about_several_pictures(
    folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import tessera

    asked = ["is <image> left of <image>?", "which is larger?"]
    assert main(["ask", pictures[0], *asked, "--image", pictures[1], "--model", str(folder), "--json"]) == 0
    said = [row["answer"] for row in json.loads(capsys.readouterr().out)]
    assert said == tessera.load(folder).answer([pictures, pictures], asked)


def test_it_is_scored_on_questions_captions_and_what_is_not_there(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suite, name in (("scenes", "questions, all types"), ("pope", "adversarial: accuracy"), ("chair", WRONG)):
        assert main(["evaluate", "--model", str(folder), "--suite", suite, "--size", "2", "--json"]) == 0
        score = json.loads(capsys.readouterr().out)["scores"][name]
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1


@pytest.mark.parametrize(
    ("words", "command"),
    [(["draw", "a cat"], "draw"), (["embed", "a cat", "--text"], "embed"), (["evaluate", "--suite", "emoji"], "draw")],
)
def test_it_neither_draws_nor_embeds(words: list[str], command: str, folder: Path, refused: Refused) -> None:
    said = refused(*words, "--model", folder)
    assert f"the VisionChat in {folder} does not {command}; it can caption, ask, chat, evaluate" in said


def test_what_cannot_be_answered_is_one_sentence(
    folder: Path, pictures: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    _typed(monkeypatch, "what?")
    assert "show it one first, in a chat with --image PATH" in refused("chat", "--model", folder)
    assert "2 <image> tags but 1 pictures" in refused("ask", "0.png", "<image> or <image>?", "--model", folder)
    assert "too many; shorten the text" in refused("ask", "0.png", "a red circle " * 400, "--model", folder)
    assert "no.png: no such file" in refused("chat", "--model", folder, "--image", "no.png")
