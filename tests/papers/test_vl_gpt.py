"""VL-GPT through the command line: a few steps of each stage, then every capability from the saved folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.assistant import load
from tessera.cli import main
from tessera.data.worlds.scenes.draw import draw
from tessera.data.worlds.scenes.graph import random_scene
from tessera.errors import CheckpointError
from tessera.papers.vl_gpt import MINI, PUBLISHED, worlds
from tessera.study.report import read_report
from tests.papers.path_to_loss import files_on_the_way_to


def picture(index: int) -> np.ndarray:
    return draw(random_scene(np.random.default_rng(index)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a training of three steps on a folder of five captioned pictures writes, and the files that it went through
    to its loss."""
    folder = tmp_path_factory.mktemp("vl-gpt")
    (folder / "mine").mkdir()
    for index in range(5):
        Image.fromarray(picture(index)).save(folder / "mine" / f"{index}.png")
        (folder / "mine" / f"{index}.txt").write_text(f"my picture number {index}")
    out = folder / "run"
    with files_on_the_way_to("tessera.models.vlgpt.modeling:next_token_of") as files:
        assert main(["train", "vl-gpt", "--data", str(folder / "mine"), "--out", str(out), "--steps", "3"]) == 0
    return out, files


@pytest.fixture
def run(trained):
    """The folder of that training."""
    return trained[0]


def test_a_step_goes_through_the_six_files_that_the_page_names(trained):
    page = (Path(__file__).parents[2] / "docs/papers.md").read_text()
    assert page.count("\n".join(trained[1])) == 1, trained[1]
    assert len(trained[1]) <= 6


def test_a_training_leaves_a_model_a_report_and_its_page(run):
    assert {"config.json", "model.safetensors", "tessera.json", "tokenizer.json", "painter"} <= {
        path.name for path in (run / "model").iterdir()
    }
    report = read_report(run)
    assert [stage.name for stage in report.stages] == ["align", "pretrain", "instruct", "write"]
    assert any(score.name == "questions, all types" for score in report.scores)
    assert "<html" in (run / "report.html").read_text()


@pytest.mark.light("vl-gpt", "use")
def test_every_capability_answers_from_the_saved_folder(run, capsys):
    assistant = load(run / "model")
    pictures = [picture(10), picture(11)]
    assert all(isinstance(said, str) for said in assistant.caption(pictures))
    assert isinstance(assistant.answer(pictures[0], "how many objects are there?"), str)
    assert assistant.draw("a red star").size == (64, 64)
    assert assistant.embed(pictures).shape == assistant.embed(["a red star", "a dog"]).shape == (2, 256)


def test_a_drawing_does_not_depend_on_what_is_drawn_beside_it(run):
    assistant = load(run / "model")
    alone = np.asarray(assistant.draw("a red star at the top", seed=3), dtype=int)
    beside = np.asarray(assistant.draw(["a blue circle", "a red star at the top"], seed=3)[1], dtype=int)
    assert abs(alone - beside).max() <= 2


@pytest.mark.light("vl-gpt", "use")
def test_saving_and_loading_gives_the_same_logits(run, tmp_path):
    assistant = load(run / "model")
    assistant.save(tmp_path / "again")
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        first, second = (one.model(ids).logits for one in (assistant, load(tmp_path / "again")))
    assert torch.equal(first, second)


def test_a_second_run_into_the_same_folder_is_refused_and_a_changed_one_names_the_field(run, capsys):
    assert main(["train", "vl-gpt", "--out", str(run), "--steps", "3"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "vl-gpt", "--out", str(run), "--steps", "3", "--resume"]) == 2
    assert "data" in capsys.readouterr().err


def test_a_folder_that_is_no_model_and_a_damaged_one_are_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="no model folder"):
        load(tmp_path)
    load(run / "model").save(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="model.safetensors is not a whole safetensors file"):
        load(tmp_path / "cut")


@pytest.mark.light("vl-gpt", "size")
def test_published_figures_of_size_come_from_the_command_line(capsys):
    assert main(["size", "vl-gpt", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    text = json.dumps(counted)
    for figure in (6738415616, 303179776, 79953920, 16777216, 205793280, 207427072, 7551546880, 859520964, 83653863):
        assert str(figure) in text


def test_own_data_keep_half_of_the_samples_and_shortened_recipes_keep_their_proportions(run):
    shares = {world.name: share for world, share in worlds([str(run.parent / "mine")])}
    assert sum(shares.values()) == pytest.approx(1) and shares["scenes"] == pytest.approx(0.425)
    assert MINI.scaled(None) is MINI
    assert [MINI.scaled(steps).steps for steps in (3, 12, 61, 250)] == [3, 12, 61, 250]
    assert MINI.scaled(MINI.steps * 2).align.steps == 2 * MINI.align.steps
    assert PUBLISHED.steps == 40_000
