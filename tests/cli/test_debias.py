"""`tessera ask`, `caption` and `chat` with --debias: what is said without looking is taken off the answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from transformers import LogitsProcessorList

import tessera
from tessera.cli import main
from tessera.cli.using import Ask, Evaluate
from tessera.data.sample import Image, Text
from tessera.evaluate.hallucination import evaluate_probes
from tessera.evaluate.posthoc import label_probabilities, label_words, post_hoc, shares
from tessera.generate.debias import Debiasing, VisualDebias
from tessera.generate.meaningless import KINDS, meaningless
from tessera.generate.prompts import collate
from tests.vision_chat_tiny import noise, vision_chat, words

Refused = Callable[..., str]
ASKED = ["what?", "which colour is it?"]
STRONG = ["--alpha", "4", "--beta", "0.001"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seeing") / "model"
    vision_chat().save(place)
    return place


@pytest.fixture(scope="module")
def yes_or_no(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that has a word for either."""
    read = words()
    read.add_tokens(["yes", "no"])
    place = tmp_path_factory.mktemp("weighing") / "model"
    vision_chat(read=read).save(place)
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


def scored(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> dict[str, Any]:
    """The result of the suite of probes."""
    assert main(["evaluate", "--model", str(folder), "--suite", "pope", "--size", "2", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.light("vdd", "use")
def test_probes_are_answered_debiased_or_calibrated_as_from_python(
    yes_or_no: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = yes_or_no
    plain = scored(capsys, folder)
    debiased = scored(capsys, folder, "--debias", "none", *STRONG)
    assert (debiased["debias"], debiased["alpha"], debiased["beta"]) == ("none", 4.0, 0.001) and "debias" not in plain
    chat = tessera.load(folder)
    chat.debias = Debiasing(kind="none", alpha=4, beta=0.001)
    assert debiased["scores"] == {name: one.to_json() for name, one in evaluate_probes(chat, 2).scores.items()}
    calibrated = scored(capsys, folder, "--calibrate", "noise")
    assert calibrated["calibrate"] == "noise" and "adversarial: calibration error" in calibrated["scores"]
    found = evaluate_probes(tessera.load(folder), 2, calibrate="noise").scores
    assert calibrated["scores"] == {name: one.to_json() for name, one in found.items()}


def test_calibrated_shares_are_the_models_own_over_what_it_says_without_the_picture(
    yes_or_no: Path, picture: str
) -> None:
    chat, labels = tessera.load(yes_or_no), ["yes", "no"]
    given, seen = ([picture] * 2, ASKED, labels), []
    for blind in (False, True):
        shown = Image(picture, False, role="user")
        prompts = [chat.builder.prompt((shown, Text(question, False, "user"))) for question in ASKED]
        inputs = collate(prompts, chat.pixels, pad_id=0)
        if blind:
            (inputs,) = meaningless(inputs, "none", image_token_id=chat.model.config.image_token_id)
        said = chat.model.generate(
            **inputs, do_sample=False, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        )
        seen.append(label_probabilities(said.logits[0], label_words(chat.tokenizer, labels)))
    assert chat.weigh(*given) == pytest.approx(shares(seen[0]).numpy())
    assert chat.weigh(*given, calibrate="none") == pytest.approx(post_hoc(*seen).numpy())


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
    for options, name in ((Ask, "debias"), (Evaluate, "debias"), (Evaluate, "calibrate")):
        kinds, _ = get_args(get_type_hints(options)[name])
        assert get_args(kinds) == KINDS


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--suite", "scenes", "--calibrate", "none"], "--calibrate is of answers yes or no; take --suite pope"),
        (["--suite", "pope", "--calibrate", "none", "--debias", "none"], "take the same prior off twice"),
        (["--suite", "pope", "--calibrate", "nune"], "--calibrate does not know 'nune'; did you mean 'none'?"),
        (["--suite", "pope", "--calibrate", "unk"], "'unk' needs the tokenizer's unknown word"),
        (["--suite", "pope", "--beta", "1"], "--beta is of debiasing"),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(
    options: list[str], sentence: str, yes_or_no: Path, refused: Refused
) -> None:
    assert sentence in refused("evaluate", "--model", yes_or_no, "--size", "2", *options)


def test_a_model_that_cannot_be_calibrated_is_named(model: Path, refused: Refused) -> None:
    said = refused("evaluate", "--model", model, "--suite", "pope", "--size", "2", "--calibrate", "none")
    assert "the Assistant does not say how likely an answer is; leave out the calibration" in said
