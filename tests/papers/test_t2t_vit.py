"""T2T-ViT as a paper: what it counts, trains and compares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tessera
from tessera.cli import main
from tessera.data.worlds.scenes.draw import draw, object_masks
from tessera.data.worlds.scenes.graph import is_heldout
from tessera.errors import UserError
from tessera.papers.figures import beside
from tessera.papers.pictures import CloseUps
from tessera.papers.registry import TrainOptions, get
from tessera.papers.t2t_vit_study import ARMS, FURTHER, SIZE, Bench, Budget, Lesson, headline
from tessera.study.engine import run
from tessera.vision import registry
from tests.vision.t2t_layout import layout, weights

SMALL = ["model.image_size=16", "model.hidden_size=16", "model.num_hidden_layers=1", "batch=4"]
TINY = Budget(lesson=Lesson(steps=2, batch=4), train_pictures=8, heldout_pictures=6)


@pytest.mark.light("t2t-vit", "size")
def test_size_tells_the_counted_figures_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "t2t-vit", "--variant", "t2t-vit-14", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["total"] == 21_545_550
    assert found["parameters"]["trainable"] == 21_465_806
    assert found["gmacs"] == pytest.approx(4.783, rel=0.005)
    assert list(found["tokens"].values()) == [3136, 784, 196]
    assert found["tokens-to-token module"]["parameters"] == 391_526


def test_one_published_figure_does_not_follow_from_the_published_shape() -> None:
    paper = get("t2t-vit")
    rows = beside(paper.figures(), paper.size)
    assert [row.figure.name for row in rows if not row.follows] == ["t2t-vit-24, GMACs"]
    assert all(bool(row.figure.note) != row.follows for row in rows)


def test_an_unknown_variant_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "t2t-vit", "--variant", "t2t_vit_19"]) == 2
    assert "no variant 't2t_vit_19'; did you mean 't2t-vit-19'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of each of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, low in (("dark", 0), ("light", 128)):
        (folder / name).mkdir()
        for number in range(4):
            pixels = np.random.default_rng(number).integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.light("t2t-vit", "use")
def test_one_s_own_classes_are_learned_and_a_fresh_process_classifies_and_embeds(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "t2t-vit", "--data", str(data), "--out", str(out), "--steps", "2"]
    assert main([*words, "--set", *SMALL]) == 0
    picture = str(data / "light/3.png")
    words = [
        [command, picture, "--model", str(out / "model"), *more]
        for command, more in (("classify", ["--json"]), ("embed", []))
    ]
    code = f"from tessera.cli import main\nfor words in {words!r}: assert main(words) == 0"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    guesses, end = json.JSONDecoder().raw_decode(ran.stdout)
    vectors = json.loads(ran.stdout[end:])
    classifier = tessera.load(out / "model")
    assert [row["class"] for row in guesses[0]["classes"]] == [name for name, _ in classifier.classify(Path(picture))]
    torch.testing.assert_close(vectors[0]["vector"], classifier.embed([Path(picture)])[0].tolist(), atol=1e-5, rtol=0)


@pytest.mark.light("t2t-vit", "weights")
def test_training_starts_from_official_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "official.safetensors"
    state = weights(layout(registry.config("t2t-vit-7", image_size=32)))
    save_file(state, file)
    options = TrainOptions(
        tmp_path / "run", data=(str(data),), steps=1, parts={"backbone": str(file)},
        settings={"batch": "2", "optimiser.lr": "0", "optimiser.muon_lr": "0"},
    )  # fmt: skip
    model = tessera.load(get("t2t-vit").train(options)).model
    assert torch.equal(model.backbone.blocks[6].mlp.fc2.weight, state["blocks.6.mlp.fc2.weight"])
    assert model.config.image_size == 32
    assert model.head.out_features == 2


def test_arms_have_the_same_tokens_and_about_as_many_parameters() -> None:
    study = headline(budget=TINY)
    with torch.device("meta"):
        models = {name: registry.create("t2t-vit-mini", image_size=SIZE, **fields) for name, fields in ARMS.items()}
    assert {model.grid_of(SIZE, SIZE) for model in models.values()} == {(8, 8)}
    counts = [arm.config["parameters"] for arm in study.arms]
    assert max(counts) / min(counts) < 1.1
    deep, wide = models["t2t"].config, models["wide and shallow"].config
    assert deep.num_hidden_layers > wide.num_hidden_layers and deep.hidden_size < wide.hidden_size
    assert deep.hidden_size / deep.num_attention_heads == wide.hidden_size / wide.num_attention_heads


def test_held_out_shapes_are_of_combinations_that_training_never_showed() -> None:
    world = CloseUps(8, 6, SIZE)
    for split in ("train", "heldout"):
        source = world.source("classes", split)
        for index in range(len(source)):
            (thing,) = world.world.scene(split, index).objects
            assert is_heldout(*thing.triple) == (split == "heldout")
            assert source[index].text == thing.shape
    assert {source[index].text for index in range(6)} <= set(world.classes)


def test_a_close_up_is_a_window_of_its_scene_with_the_whole_object_in_it() -> None:
    world = CloseUps(8, 6, SIZE)
    for index in range(8):
        scene = world.world.scene("train", index)
        near = np.asarray(world.source("classes")[index].images[0].pil())
        windows = np.lib.stride_tricks.sliding_window_view(draw(scene), (SIZE, SIZE, 3))[:, :, 0]
        (row,), (column,) = np.nonzero((windows == near).all((2, 3, 4)))
        (mask,) = object_masks(scene)
        assert mask[row : row + SIZE, column : column + SIZE].sum() == mask.sum() > 0


def test_the_study_runs_on_few_pictures_and_is_of_equal_budget(tmp_path: Path) -> None:
    result = run(headline(tmp_path, TINY), 3, out=tmp_path / "result.json", work=tmp_path)
    assert result["slug"] == "t2t-vit"
    assert result["budget"]["equal"]
    assert [claim["arm"] for claim in result["claims"]] == ["t2t"] * 3
    assert {claim["against"] for claim in result["claims"]} == {*ARMS} - {"t2t"}
    for arm in result["arms"].values():
        assert arm["steps"] == [2] * 3 and len(arm["metrics"]["accuracy"]["by_seed"]) == 3


def test_the_arms_change_their_study_s_fingerprint_and_nothing_else(tmp_path: Path) -> None:
    shorter = Budget(lesson=Lesson(steps=1, batch=4), train_pictures=8, heldout_pictures=6)
    studies = [Bench("s", CloseUps(8, 6, SIZE), one, tmp_path).study() for one in (TINY, TINY, shorter)]
    hashes = [[study.arm_hash(arm) for arm in study.arms] for study in studies]
    assert hashes[0] == hashes[1]
    assert not {*hashes[0]} & {*hashes[2]}


@pytest.mark.parametrize(
    ("study", "given", "sentence"),
    [
        ("omniglot", {}, "name their folder with --data"),
        ("emoji", {"data": Path("x")}, "leave out --data"),
        ("emoji", {"model": Path("x")}, "leave out --model"),
    ],
)
def test_a_further_study_says_what_it_reads(study: str, given: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    options = {"data": None, "model": None, **given}
    with pytest.raises(UserError, match=sentence):
        FURTHER[study](**options)
    assert get("t2t-vit").studies is FURTHER
