"""CvT as a paper: its sizes and figures, training on one's own classes, and the contract of its study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CvtConfig, CvtForImageClassification

from tessera.cli import main
from tessera.errors import UserError
from tessera.papers import cvt, cvt_study
from tessera.papers.cvt_study import ARMS, AT_LARGER, LARGER, Bench, Budget, headline
from tessera.papers.figures import beside
from tessera.papers.pictures import CloseUps
from tessera.papers.registry import get
from tessera.study.classifying import METRIC, Lesson
from tessera.study.engine import run

TINY = Budget(lesson=Lesson(steps=2, batch=4), train_pictures=12, heldout_pictures=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures with a bright left half and twelve with a bright right one."""
    folder = tmp_path_factory.mktemp("halves")
    for name, place in (("left", slice(0, 20)), ("right", slice(20, 40))):
        (folder / name).mkdir()
        for number in range(12):
            pixels = np.full((40, 40, 3), 10 * number, np.uint8)
            pixels[:, place] += 100
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.light("cvt", "size")
def test_the_size_command_counts_every_figure_of_the_published_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "cvt", "--variant", "cvt-13", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == {
        "total": 19_997_480, "stage 1": 61_696, "stage 2": 1_013_568, "stage 3": 18_536_448, "last norm": 768,
        "head": 385_000,
    }  # fmt: skip
    assert found["batch norm statistics"] == 25_767
    assert found["gmacs"] == pytest.approx({"224 pixels": 4.566, "384 pixels": 16.269}, rel=5e-4)
    assert found["tokens at 224 pixels"] == {
        "stage 1": {"queries": 3136, "keys": 784}, "stage 2": {"queries": 784, "keys": 196},
        "stage 3": {"queries": 197, "keys": 50},
    }  # fmt: skip


@pytest.mark.light("cvt", "size")
def test_published_figures_follow_from_the_published_configurations_but_for_one() -> None:
    paper = get("cvt")
    rows = beside(paper.figures(), paper.size)
    assert len(rows) == 8
    odd = [row for row in rows if not row.follows]
    assert [row.figure.name for row in odd] == ["cvt-w24, GMACs at 384 pixels"]
    assert all(row.figure.note for row in odd)
    assert not any(row.figure.note for row in rows if row.follows)


def test_an_unknown_variant_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="cvt has no variant 'cvt13'; did you mean 'cvt-13'"):
        get("cvt").size("cvt13")


@pytest.mark.light("cvt", "use")
def test_one_s_own_classes_are_learned_and_answered_for_pictures_of_any_size(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["steps=40", "augment.flip=0", "augment.crop=1", "mixing.chance=0", "batch=8", "optimiser.warmup=0.1"]
    line = ["train", "cvt", "--data", str(data), "--out", str(tmp_path / "run"), "--precision", "fp32", "--set"]
    assert main([*line, *settings]) == 0
    model = str(tmp_path / "run/model")
    pixels = np.full((50, 70, 3), 30, np.uint8)
    pixels[:, 35:] += 100
    Image.fromarray(pixels).save(tmp_path / "new.png")
    capsys.readouterr()
    assert main(["classify", str(tmp_path / "new.png"), "--model", model, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["classes"][0]["class"] == "right"
    assert main(["embed", str(tmp_path / "new.png"), "--model", model]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["vector"]) == 128


@pytest.mark.light("cvt", "weights")
def test_training_starts_from_a_published_folder(data: Path, tmp_path: Path) -> None:
    theirs = CvtForImageClassification(CvtConfig(embed_dim=(16, 16, 32), num_heads=(1, 1, 1), depth=(1, 2, 3)))
    theirs.save_pretrained(tmp_path / "published")
    line = ["train", "cvt", "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "1", "--parts"]
    assert main([*line, f"backbone={tmp_path / 'published'}", "--set", "batch=4"]) == 0
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["backbone_config"]["widths"] == [16, 16, 32]


def test_fields_of_a_cvt_are_set_by_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "cvt", "--data", str(data), "--steps", "1", "--set", "batch=4"]
    assert main([*line, "model.attention_scale=head", "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["backbone_config"]["attention_scale"] == "head"
    assert main([*line, "model.attention_scal=head", "--out", str(tmp_path / "other")]) == 2
    assert "did you mean 'model.attention_scale'" in capsys.readouterr().err


def test_the_study_judges_every_arm_at_both_sizes_with_equal_budget(tmp_path: Path) -> None:
    result = run(headline(tmp_path, TINY), 3, out=tmp_path / "cvt.json", work=tmp_path)
    assert list(result["arms"]) == list(ARMS)
    assert result["budget"]["equal"]
    for arm in result["arms"].values():
        assert {METRIC, AT_LARGER} <= arm["metrics"].keys()
        assert arm["steps"] == [2] * 3
        assert arm["samples"] == [8] * 3
        assert {"parameters", "mmacs", "backbone"} <= arm["config"].keys()
    assert len(result["claims"]) == 5
    sizes = {name: (arm["config"]["parameters"], arm["config"]["mmacs"]) for name, arm in result["arms"].items()}
    assert all(ours < theirs for ours, theirs in zip(sizes["cvt"], sizes["vit with positions"], strict=True))


def test_the_larger_pictures_are_those_that_were_held_out_anew_cut(tmp_path: Path) -> None:
    bench = Bench("cvt", CloseUps(4, 3, LARGER), TINY, tmp_path)
    small, large = bench.heldout, bench.larger
    assert [sample.id for sample in (small[1], large[1])] == ["scenes by shape/heldout/1"] * 2
    assert (small[1].images[0].pil().size, large[1].images[0].pil().size) == ((32, 32), (48, 48))


@pytest.mark.parametrize("arm", ARMS)
@torch.no_grad()
def test_every_arm_reads_the_size_that_it_was_not_trained_on(arm: str, tmp_path: Path) -> None:
    model = Bench("cvt", CloseUps(4, 3, LARGER), TINY, tmp_path).model(arm).eval()
    assert model(torch.randn(1, 3, 48, 48)).logits.shape == (1, len(model.config.classes))
    assert model.backbone.grid_of(32, 32) == (8, 8)


def test_further_studies_say_what_they_read(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    line = ["reproduce", "cvt", "--out", str(tmp_path / "a.json"), "--study"]
    assert main([*line, "omniglot"]) == 2
    assert "name their folder with --data" in capsys.readouterr().err
    assert main([*line, "emoji", "--data", str(data)]) == 2
    assert "leave out --data" in capsys.readouterr().err
    assert main([*line, "emoji", "--model", str(data)]) == 2
    assert "leave out --model" in capsys.readouterr().err


def test_a_recipe_of_the_published_size_is_that_of_the_official_configuration() -> None:
    published = cvt.RECIPES["published"]
    assert published.steps == 310 * 1_281_167 // 256
    assert published.optimiser.lr * published.optimiser.floor == pytest.approx(1e-5)
    assert replace(published, accumulate=4).part == 64
    assert cvt_study.BUDGET.lesson.steps > 0
