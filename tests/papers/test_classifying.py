"""What papers of image encoders share: a user's classes are learned, saved and answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.cli import main
from tessera.data.images import Augment
from tessera.errors import CheckpointError, UserError
from tessera.objectives.classification import Mixing
from tessera.papers.classifying import ClassRecipe, open_pictures, train_classifier
from tessera.papers.registry import Paper, TrainOptions
from tessera.papers.settings import CONFIG
from tessera.train.optim import Optimiser
from tessera.vision.registry import create
from tessera.vision.vit import PlainViTConfig


@dataclass(frozen=True, kw_only=True)
class Recipe(ClassRecipe):
    """With the fields of the plain ViT."""

    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: PlainViTConfig})


SMALL = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = Recipe(
    backbone="vit-mini", model=SMALL, steps=2, batch=8, optimiser=Optimiser(lr=0.01), augment=Augment(crop=0.9),
    mixing=Mixing(chance=0.0),
)  # fmt: skip


class Tiny(Paper):
    """A paper that trains a classifier."""

    slug = "tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten reds and ten blues."""
    folder = tmp_path_factory.mktemp("colours")
    for place, name in ((0, "red"), (2, "blue")):
        (folder / name).mkdir()
        for number in range(10):
            pixels = np.zeros((20, 20, 3), np.uint8)
            pixels[..., place] = 200 + number
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_a_user_s_classes_are_learned_saved_and_answered_from_the_command_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"model.hidden_size": "24", "optimiser.weight_decay": "0.1"}
    options = TrainOptions(tmp_path / "run", data=(str(data),), steps=30, precision="fp32", settings=changed)
    model = train_classifier(Tiny(), options, TINY)
    assert "pictures right (95 % interval" in capsys.readouterr().err
    picture = str(data / "blue/3.png")
    assert main(["classify", picture, "--model", str(model), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["classes"][0]["class"] == "blue"
    assert main(["embed", picture, "--model", str(model)]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["vector"]) == 24


def test_training_starts_from_trained_weights_or_from_what_the_paper_reads(data: Path, tmp_path: Path) -> None:
    create("vit-mini", **SMALL).save_pretrained(tmp_path / "eyes")
    options = TrainOptions(tmp_path / "a", data=(str(data),), parts={"backbone": str(tmp_path / "eyes")})
    assert (train_classifier(Tiny(), options, TINY) / "model.safetensors").is_file()
    asked = []

    def published(file: Path) -> Any:
        asked.append(file)
        return create("vit-mini", **SMALL)

    file = tmp_path / "eyes/model.safetensors"
    options = TrainOptions(tmp_path / "b", data=(str(data),), parts={"backbone": str(file)})
    train_classifier(Tiny(), options, TINY, published)
    assert asked == [file]


def test_what_a_recipe_and_its_options_cannot_be_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one set of classes is learned at a time, not 2"):
        open_pictures(["emoji", str(data)])
    out = tmp_path / "run"
    for options, sentence in (
        (TrainOptions(out, parts={"backbon": "x"}), "no role 'backbon' here; did you mean 'backbone'"),
        (TrainOptions(out, parts={"backbone": "x"}, settings={"model.image_size": "32"}), "model.image_size cannot be"),
        (TrainOptions(out, settings={"model.patch_size": "5"}), "16 x 16 pixels cannot be cut into tiles of 5 x 5"),
        (TrainOptions(out, parts={"backbone": str(data)}), "is no folder of a model"),
        (TrainOptions(out, settings={"step": "3"}), "there is no setting 'step'; did you mean 'steps'"),
    ):
        with pytest.raises((UserError, CheckpointError), match=sentence):
            train_classifier(Tiny(), options, TINY)
    assert not out.exists()
    with pytest.raises(UserError, match="a batch of 8 does not divide into 3 parts"):
        _ = replace(TINY, accumulate=3).part
