"""`tessera classify` and `embed` with an image classifier, and commands that a model does not answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tessera.classifier import Classifier
from tessera.cli import main
from tessera.models.classifier import ImageClassifier
from tessera.vision.registry import create

Refused = Callable[..., str]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("classifier") / "model"
    eyes = create("vit-mini", num_hidden_layers=1, hidden_size=16, num_attention_heads=2)
    Classifier(ImageClassifier.over(eyes, ("cat", "dog", "cow")).eval()).save(place)
    return place


@pytest.fixture
def picture(here: Path) -> Path:
    Image.new("RGB", (40, 30), (200, 10, 10)).save(here / "picture.png")
    return here / "picture.png"


def test_classes_are_named_with_their_probabilities(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", str(picture), str(picture), "--model", str(folder), "--top", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["image"] == str(picture) and first["classes"] == second["classes"]
    shares = [one["probability"] for one in first["classes"]]
    assert len(shares) == 2 and shares == sorted(shares, reverse=True)
    assert main(["classify", str(picture), "--model", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith(str(picture))
    assert all(f"{one['class']} {one['probability']:.1%}" in lines[1] for one in first["classes"])


def test_pictures_become_the_vectors_that_the_head_reads(
    folder: Path, picture: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", str(picture), "--model", str(folder)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["input"] == str(picture) and len(row["vector"]) == 16
    assert main(["embed", str(picture), "--model", str(folder), "--out", str(here / "v.safetensors")]) == 0
    assert load_file(here / "v.safetensors")["embeddings"].tolist()[0] == pytest.approx(row["vector"])


@pytest.mark.parametrize(("words", "command"), [(["caption", "picture.png"], "caption"), (["draw", "a cat"], "draw")])
def test_a_command_that_a_classifier_does_not_answer_is_refused_with_those_that_it_does(
    words: list[str], command: str, folder: Path, picture: Path, refused: Refused
) -> None:
    said = refused(*words, "--model", folder)
    assert f"the Classifier in {folder} does not {command}; it can classify, embed" in said


def test_a_classifier_has_no_vectors_of_sentences(folder: Path, refused: Refused) -> None:
    assert "has vectors of pictures alone" in refused("embed", "a cat", "--text", "--model", folder)


def test_a_model_of_words_does_not_classify(picture: Path, model: Path, refused: Refused) -> None:
    assert "does not classify; it can caption, ask" in refused("classify", picture, "--model", model)


def test_a_bad_picture_is_named_before_a_model_is_loaded(here: Path, refused: Refused) -> None:
    (here / "bad.png").write_bytes(b"no picture")
    assert "bad.png: not a readable PNG" in refused("classify", "bad.png", "--model", "nowhere")
