"""Bad input on the command line: one sentence that names thing, value and way out, exit code 2, nothing written. And
input that is odd but sound, which works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.cli import main
from tessera.zoo.parts import SHIPPED
from tests.cli import spoilt
from tests.cli.spoilt import Refused, cut, fields, put, remove, tensors

LONG = "red " * 3000


@pytest.fixture
def picture(here: Path) -> Path:
    (here / "picture.png").write_bytes(spoilt.encoded(spoilt.photo()))
    return here / "picture.png"


# ---- names, options and places


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train vl-gtp", "there is no paper 'vl-gtp'; did you mean 'vl-gpt'?"),
        ("train vl-gpt --data scnes", "there is no world or file called 'scnes'; did you mean 'scenes'?"),
        ("train vl-gpt --data no/such/folder", "no/such/folder: no such file or folder"),
        ("train vl-gpt --data", "--data: expected at least one argument"),
        ("train vl-gpt --dta scenes", "has no option '--dta'; did you mean '--data'?"),
        ("train vl-gpt --seed -1", "--seed takes a whole number of 0 or more, not '-1'"),
        ("train vl-gpt --steps 1.5", "--steps takes a whole number of 1 or more, not '1.5'"),
        ("train vl-gpt --workers -2", "--workers takes a whole number of 0 or more, not '-2'"),
        ("train vl-gpt --precision fp8", "--precision does not know 'fp8'; known are auto, bf16, fp32"),
        ("train vl-gpt --parts langage=x", "there is no part 'langage' at this size of VL-GPT; did you mean"),
        ("train vl-gpt --parts language=mini/ml", "there is no mini part 'mini/ml'; did you mean 'mini/lm'?"),
        ("train vl-gpt --parts language=some/llama", "give a folder on this machine, or fetch it with"),
        ("train vl-gpt --size published", "needs a checkpoint for language, vision, painter, adapter, image_encoder"),
        ("train vl-gpt --set align.bach=3", "there is no setting 'align.bach'; did you mean 'align.batch'?"),
        ("train vl-gpt --set align.batch=many", "align.batch takes a whole number, not 'many'"),
        ("caption picture.png", "tessera caption: needs --model"),
        ("caption picture.png --model no/model", "no/model is no model folder of Tessera"),
        ("caption picture.png --model picture.png", "picture.png is no model folder of Tessera"),
        ("draw x --model MODEL --count 0", "--count takes a whole number of 1 or more, not '0'"),
        ("draw x --model MODEL --seed -1", "--seed takes a whole number of 0 or more"),
        (f"draw x --model MODEL --seed {2**70}", "--seed takes a whole number of 0 or more"),
        ("draw x --model MODEL --out picture.png", "picture.png cannot be used: File exists"),
        ("draw x --model MODEL --out picture.png/deep", "picture.png/deep cannot be used: Not a directory"),
        ("embed x --text --model MODEL --out MODEL", "model is a folder; name a file, such as one in it"),
        ("evaluate --model MODEL --out picture.png/result.json", "picture.png is no folder; choose another path"),
        ("reproduce vit-vqgan --out .", "--out: . is a folder; name a file, such as one in it"),
        ("evaluate --model MODEL --size 0", "--size takes a whole number of 1 or more"),
        ("evaluate --model MODEL --suite scnes", "there is no suite 'scnes'; did you mean 'scenes'?"),
        ("worlds show scenes --count 0", "--count takes a whole number of 1 or more"),
        ("worlds show scenes --task pears", "did you mean 'pairs'?"),
        ("worlds export scenes --out picture.png", "picture.png holds something already; choose another --out"),
        ("worlds export scenes --out x --count -3", "--count takes a whole number of 1 or more"),
        ("zoo build lm --steps 0", "--steps takes a whole number of 1 or more"),
        ("zoo build clp", "there is no recipe 'clp'; did you mean 'clip'?"),
    ],
)
@pytest.mark.usefixtures("picture")
def test_a_wrong_name_option_or_place_is_named(line: str, sentence: str, refused: Refused, model: Path) -> None:
    assert sentence in refused(*line.replace("MODEL", str(model)).split())


# ---- pictures


@pytest.mark.parametrize("name", spoilt.BAD_PICTURES)
def test_a_bad_picture_is_named_with_its_reason(name: str, here: Path, refused: Refused, model: Path) -> None:
    data, reason = spoilt.BAD_PICTURES[name]
    (here / name).write_bytes(data)
    for line in (["caption", name], ["ask", name, "what is it?"], ["embed", name, "--out", "x"]):
        said = refused(*line, "--model", model)
        assert said.startswith(f"tessera: {name}: ") and reason in said


def test_a_folder_and_a_missing_file_are_no_pictures(here: Path, refused: Refused, model: Path) -> None:
    (here / "folder.png").mkdir()
    assert "folder.png: cannot be read (Is a directory)" in refused("caption", "folder.png", "--model", model)
    assert "gone.png: no such file" in refused("caption", "gone.png", "--model", model)


def test_one_bad_picture_among_good_ones_stops_before_any_answer(picture: Path, refused: Refused, model: Path) -> None:
    (picture.parent / "zero.png").write_bytes(b"")
    assert "zero.png" in refused("caption", picture, "zero.png", picture, "--model", model)


@pytest.mark.parametrize("name", spoilt.ODD_PICTURES)
def test_odd_pictures_are_read_as_their_rgb(
    name: str, here: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / name).write_bytes(spoilt.ODD_PICTURES[name])
    spoilt.as_rgb(name).save(here / "same.png")
    assert main(["embed", name, "same.png", "--model", str(model)]) == 0
    odd, same = (np.array(row["vector"]) for row in json.loads(capsys.readouterr().out))
    assert np.array_equal(odd, same)
    assert main(["caption", name, "--model", str(model)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bad_picture_ends_a_scripted_chat_and_not_a_spoken_one(
    terminal: bool, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["/image gone.png", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    assert main(["chat", "--model", str(model)]) == (0 if terminal else 2)
    assert capsys.readouterr().err == "tessera: gone.png: no such file\n"


def test_a_result_has_a_place_before_it_is_worked_for(
    here: Path, model: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != here)  # who is root may write everywhere
    said = refused("evaluate", "--model", model, "--out", "new/result.json")
    assert f"--out: new/result.json cannot be written, since {here} may only be read" in said
    assert not (here / "new").exists()


# ---- words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("x" * 1_000_000, "1,000,000 bytes is over the limit of 100,000"),
        ("half \udc80 a letter", "the text is not valid Unicode"),
    ],
)
def test_words_that_cannot_be_used_are_counted_out(
    text: str, reason: str, picture: Path, refused: Refused, model: Path
) -> None:
    said = refused("ask", picture, "what is it?", text, "--model", model)
    assert "question 2" in said and reason in said
    for line in (["draw", text, "--out", "x"], ["embed", text, "--text"]):
        said = refused(*line, "--model", model)
        assert "text 1" in said and reason in said


def test_words_beyond_the_models_reach_are_never_cut(picture: Path, refused: Refused, model: Path) -> None:
    for line in (["ask", picture, LONG], ["draw", LONG, "--out", "x"], ["embed", LONG, "--text"]):
        said = refused(*line, "--model", model)
        assert "tokens, limit 512" in said and "shorten" in said


# ---- model folders

WEIGHTS = "model.safetensors"
UNET = "painter/unet/diffusion_pytorch_model.safetensors"
VAE = "painter/vae/diffusion_pytorch_model.safetensors"
ADAPTER = "painter/image_projection/diffusion_pytorch_model.safetensors"
CONSTANTS = "painter/constants.safetensors"
CONFIG = "config.json"


@pytest.mark.parametrize("file", [WEIGHTS, UNET, VAE, ADAPTER, CONSTANTS])
@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("a pickle", spoilt.evil),
        ("an archive of torch.save", spoilt.archive),
        ("nothing", b""),
        ("a header of 2 GB", spoilt.header({}, length=2**31)),
        ("tensors that overlap", spoilt.OVERLAP),
    ],
)
def test_weights_that_are_none_are_named_and_nothing_is_unpickled(
    file: str, what: str, data: Any, picture: Path, refused: Refused, model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "spoilt"))
    put(file, data)(copy)
    assert str(copy / file) in refused("caption", picture, "--model", copy)
    assert not (copy / "OPENED").exists()


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (cut(WEIGHTS, 1000), [f"{WEIGHTS} is not a whole safetensors file", "copy or download it again"]),
        (cut(UNET, 1000), [UNET]),
        (remove(WEIGHTS), ["has no model.safetensors"]),
        (remove(UNET), ["painter"]),
        (remove(CONSTANTS), [CONSTANTS]),
        (remove("painter"), ["has no folder 'unet'"]),
        (spoilt.only_pickled, ["pytorch_model.bin is a pickle", "never loaded", "convert it to model.safetensors"]),
        (put(WEIGHTS, spoilt.evil), ["is a pickle", "convert it to model.safetensors"]),
        (tensors(WEIGHTS, spoilt.drop_first), ["1 missing (image_tokenizer.", "0 unexpected, 0 of another shape"]),
        (tensors(WEIGHTS, spoilt.add_one), ["0 missing, 1 unexpected (added.weight)"]),
        (tensors(WEIGHTS, spoilt.reshape_first), ["1 of another shape (image_tokenizer.", "[3, 7] for ["]),
        (tensors(UNET, spoilt.drop_first), ["unet", "1 of its weights are missing"]),
        (tensors(VAE, spoilt.drop_first), ["vae", "1 of its weights are missing"]),
        (tensors(CONSTANTS, spoilt.drop_first), [CONSTANTS]),
        (tensors(CONSTANTS, spoilt.reshape_first), [CONSTANTS]),
        (put(CONFIG, b"{"), ["config.json is not valid JSON"]),
        (put(CONFIG, b"[1]"), ["config.json is a list, not an object"]),
        (put(CONFIG, b"{}"), ["the weights in", "do not fit its config.json"]),  # the published size, by default
        (fields(CONFIG, draw_steps="many"), ["config.json", "'draw_steps' expected int, got str (value: 'many')"]),
        (fields(CONFIG, draw_steps=0), ["config.json: draw_steps is 0; it is at least 1"]),
        (
            fields(CONFIG, standardise="chanel"),
            ["'standardise' expected one of ('none', 'global', 'channel', 'conditions')"],
        ),
        (fields(CONFIG, tokenizer_config__heads="two"), ["'heads' expected int, got str"]),
        (fields(CONFIG, tokenizer_config__heads=5), ["a width of 24 does not divide into 5 heads"]),
        (fields(CONFIG, text_config__hidden_size="big"), ["'hidden_size' expected int, got str"]),
        (fields(CONFIG, text_config__hidden_act="gleu"), ["config.json describes no model", "gleu"]),
        (fields(CONFIG, text_config=None), ["config.json describes no model"]),
        (fields(CONFIG, draw_stepz=3), ["config.json has an unknown key 'draw_stepz'; did you mean 'draw_steps'?"]),
        (fields(CONFIG, tokenizer_config__hedas=3), ["unknown key 'hedas'; did you mean 'heads'?"]),
        (fields(CONFIG, text_config__num_hidden_layers=3), ["9 missing (language_model.model.layers.2."]),
        (fields(CONFIG, model_type="llama"), ["of a model of type 'llama', not 'tessera_vlgpt'"]),
        (fields(CONFIG, auto_map={"AutoModel": "evil.Model"}), ["asks for code of its own (auto_map)", "never run"]),
        (fields("painter/unet/config.json", in_channels="x"), ["painter"]),
        (fields("painter/vae/config.json", _class_name="Evil"), ["an autoencoder of an unknown kind: 'Evil'"]),
        (cut("tokenizer.json", 500), ["the tokenizer of", "cannot be loaded"]),
        (remove("tokenizer.json"), ["the tokenizer of", "cannot be loaded"]),
        (fields(CONFIG, image_start_id=9), ["the tokenizer in", "[IMG] has number 2 there and 9 in config.json"]),
        (fields("tessera.json", format=99), ["has format 99, this version reads 1"]),
        (put("tessera.json", b"[1]"), ["is no model folder of Tessera"]),
    ],
)
def test_a_spoilt_model_folder_says_what_is_wrong_with_it(
    change: spoilt.Change, sentences: list[str], picture: Path, refused: Refused, model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "spoilt"))
    change(copy)
    said = refused("caption", picture, "--model", copy)
    assert str(copy) in said
    assert [sentence for sentence in sentences if sentence not in said] == [], said
    assert not (copy / "OPENED").exists()


def test_keys_that_only_transformers_own_classes_do_not_know_are_kept(
    picture: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    fields(CONFIG, text_config__released_by="someone")(copy)
    answers = []
    for folder in (model, copy):
        assert main(["caption", str(picture), "--model", str(folder)]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", ["cut", "pickled", "other"])
def test_a_spoilt_part_stops_a_training_before_it_writes(kind: str, here: Path, refused: Refused) -> None:
    part = Path(shutil.copytree(SHIPPED / ("clip" if kind == "other" else "lm"), here / "part"))
    if kind == "cut":
        cut(WEIGHTS, 100_000)(part)
    if kind == "pickled":
        spoilt.only_pickled(part)
    said = refused("train", "vl-gpt", "--data", "scenes", "--out", "run", "--parts", f"language={part}")
    assert str(part) in said
    assert not (part / "OPENED").exists()
