"""GMML: published sizes, a user's pictures through the command line, the study at a tiny budget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import tessera
from tessera.cli import main
from tessera.errors import UserError
from tessera.papers import gmml_study
from tessera.papers.figures import beside
from tessera.papers.gmml import GMML, RECIPES
from tessera.papers.registry import TrainOptions
from tessera.papers.restoring import open_both
from tessera.papers.settings import change
from tessera.study.classifying import METRIC, Lesson
from tessera.study.engine import run
from tests.papers.path_to_loss import files_on_the_way_to

SMALL = [
    "model.image_size=16", "model.patch_size=4", "model.hidden_size=16", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "blocks=-2,-1", "pretrain.batch=8", "batch=8",
]  # fmt: skip


@pytest.mark.light("gmml", "size")
@pytest.mark.parametrize(
    ("variant", "encoder", "head", "total"),
    [
        ("vit-ti16", 5_524_416, 258_627, 5_783_043),
        ("vit-s16", 21_665_664, 738_435, 22_404_099),
        ("vit-b16", 85_798_656, 2_361_603, 88_160_259),
    ],
)
def test_encoder_head_and_total_count_exactly(variant: str, encoder: int, head: int, total: int) -> None:
    assert GMML().size(variant)["parameters"] == {"encoder": encoder, "head": head, "total": total}


@pytest.mark.light("gmml", "size")
def test_every_published_figure_follows() -> None:
    rows = beside(GMML().figures(), GMML().size)
    assert [row.figure.name for row in rows if not row.follows] == []


def test_any_variant_of_a_backbone_is_counted_and_an_unknown_one_is_not() -> None:
    size = GMML().size("cvt-13")
    assert (size["tokens"], size["parameters"]["head"]) == (196, 738_435)
    with pytest.raises(UserError, match="no variant 'vit-s1'; did you mean 'vit-s16'"):
        GMML().size("vit-s1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures each of two colours, by class; and eight of no class."""
    folder = tmp_path_factory.mktemp("pictures")
    for place, name in ((0, "classes/red"), (2, "classes/blue"), (1, "others")):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 60, (20, 20, 3), np.uint8)
            pixels[..., place] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run of a training through the command line, and the files on the way to its first loss."""
    out = tmp_path_factory.mktemp("gmml") / "run"
    with files_on_the_way_to("tessera.models.masked_image:masked_l1") as files:
        arguments = ["--out", str(out), "--steps", "15", "--precision", "fp32", "--set", *SMALL]
        assert main(["train", "gmml", "--data", str(data / "classes"), *arguments]) == 0
    return out, files


def test_a_step_goes_through_six_files_from_the_command_to_the_loss(trained: tuple[Path, list[str]]) -> None:
    assert trained[1] == [
        "cli/training.py",
        "papers/gmml.py",
        "train/engine.py",
        "train/step.py",
        "models/masked_image.py",
        "objectives/masked_l1.py",
    ]


@pytest.mark.light("gmml", "use")
def test_a_user_s_pictures_are_restored_their_classes_learned_and_answered(
    trained: tuple[Path, list[str]], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture = str(trained[0] / "model"), str(data / "classes/blue/3.png")
    assert main(["classify", picture, "--model", model, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert {guess["class"] for guess in row["classes"]} == {"red", "blue"}
    assert main(["embed", picture, "--model", model]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["vector"]) == 16
    lines = (trained[0] / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 15


@pytest.mark.light("gmml", "use")
def test_pictures_without_classes_are_restored_first_and_the_encoder_goes_on_elsewhere(
    trained: tuple[Path, list[str]], data: Path, tmp_path: Path
) -> None:
    both = ["--data", str(data / "others"), str(data / "classes"), "--steps", "5", "--precision", "fp32"]
    assert main(["train", "gmml", *both, "--out", str(tmp_path / "a"), "--set", *SMALL, "masking.fills=zeros"]) == 0
    assert tessera.load(tmp_path / "a/model").classes == ("blue", "red")
    tuned = ["--data", str(data / "classes"), "--parts", f"backbone={tmp_path / 'a/backbone'}", "--steps", "2"]
    assert main(["train", "gmml", *tuned, "--out", str(tmp_path / "b"), "--precision", "fp32"]) == 0
    assert tessera.load(tmp_path / "b/model").model.config.reads == "tokens"
    assert not (tmp_path / "b/backbone").exists()


def test_the_classifier_starts_from_the_encoder_that_restored(trained: tuple[Path, list[str]]) -> None:
    weights = []
    for name, prefix in (("backbone", ""), ("model", "backbone.")):
        with safe_open(trained[0] / name / "model.safetensors", framework="np") as held:
            weights.append(held.get_tensor(f"{prefix}patches.weight"))
    moved = np.abs(weights[1] - weights[0]).max()
    assert 0 < moved < 0.5


def test_the_steps_are_shared_between_both_stages(data: Path) -> None:
    recipe = RECIPES["mini"].scaled(100, pretrained=False)
    assert (recipe.pretrain.steps, recipe.steps) == (80, 20)
    assert RECIPES["mini"].scaled(100, pretrained=True).steps == 100
    with pytest.raises(UserError, match="not 3 sets"):
        open_both(["a", "b", "c"])


def test_every_field_of_the_recipe_can_be_set_however_deep_it_lies() -> None:
    given = {"pretrain.optimiser.lr": "0.5", "masking.align": "8", "blocks": "-2,-1", "model.hidden_size": "64"}
    recipe = change(RECIPES["mini"], given)
    assert (recipe.pretrain.optimiser.lr, recipe.masking.align, recipe.blocks) == (0.5, 8, [-2, -1])
    assert recipe.model == {"hidden_size": 64}
    assert recipe.pretrain.steps == RECIPES["mini"].pretrain.steps and recipe.optimiser == RECIPES["mini"].optimiser


def test_what_cannot_be_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    for settings, sentence in (
        ({"masking.fills": "noize"}, "cannot be filled with 'noize'; did you mean 'noise'"),
        ({"masking.blok": "0.3"}, "there is no setting 'masking.blok'; did you mean 'masking.block'"),
        ({"blocks": "-9,-1"}, "blocks is \\[-9, -1\\], but the backbone has"),
    ):
        options = TrainOptions(tmp_path / "run", data=(str(data / "classes"),), settings=settings)
        with pytest.raises(UserError, match=sentence):
            GMML().train(options)
    assert not (tmp_path / "run").exists()


BUDGET = gmml_study.Budget(
    restoring=2, classes=Lesson(steps=1, batch=4), labels=2, train_pictures=40, heldout_pictures=6
)


def test_the_study_runs_all_arms_at_equal_budget(tmp_path: Path) -> None:
    result = run(gmml_study.headline(tmp_path / "work", BUDGET), 3, out=tmp_path / "gmml.json", work=tmp_path / "work")
    assert result["budget"]["equal"]
    assert result["arms"]["scratch"]["steps"] == result["arms"]["grouped"]["steps"] == [3, 3, 3]
    assert len(result["claims"]) == 3
    assert METRIC in result["arms"]["isolated"]["metrics"]
    assert not list((tmp_path / "work/training").iterdir()), "nothing is left of the trainings"


def test_the_area_that_is_hidden_is_a_study_of_its_own(tmp_path: Path) -> None:
    paper = GMML()
    assert list(paper.studies) == ["area", "emoji", "digits", "omniglot"]
    with pytest.raises(UserError, match="leave out --data"):
        paper.studies["area"](data=tmp_path, model=None)
    study = gmml_study.area(tmp_path, BUDGET)
    assert [arm.config["restores"]["most"] for arm in study.arms] == [0.1, 0.3, 0.6, 0.9]
    outcome = study.arms[-1].run(0)
    assert (outcome.steps, outcome.samples) == (3, 12)
    assert len(outcome.items[METRIC]) == 6
