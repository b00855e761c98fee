"""PRIOR as a paper: the figure's worked examples, a user's conversations through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from tessera.cli import main
from tessera.data.blind import Scores
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import TesseraError, UserError
from tessera.models.folder import read_folder
from tessera.models.lvlm import LVLMForConditionalGeneration, save_llava
from tessera.papers.figures import beside
from tessera.papers.lvlm_training import Parts
from tessera.papers.prior import RECIPES, WORKED, Prior, worked
from tessera.papers.registry import TrainOptions, get
from tessera.papers.settings import change
from tessera.zoo.parts import load_tokenizer
from tests.papers.conversations_made import conversations, row
from tests.papers.path_to_loss import files_on_the_way_to
from tests.papers.published_tiny import clip, llama

SMALL = ["rows=2", "row_length=256", "reference.rows=2", "reference.rank=2"]


@pytest.mark.light("prior", "size")
def test_every_published_figure_follows() -> None:
    paper = get("prior")
    rows = beside(paper.figures(), paper.size)
    assert len(rows) == 1 + 8
    assert [row.figure.name for row in rows if not row.follows] == []


@pytest.mark.light("prior", "exact")
@pytest.mark.parametrize("caption", WORKED)
def test_the_figure_s_losses_follow_within_the_rounding_of_what_they_are_made_of(caption: str) -> None:
    mean, words = WORKED[caption]
    for (before, blind, after), ours in zip(words, worked()[caption].values(), strict=True):
        low = (before - 0.005) * (1 - blind - 0.005) / mean
        high = (before + 0.005) * (1 - blind + 0.005) / mean
        assert ours == pytest.approx(before * (1 - blind) / mean, rel=1e-5)
        assert low - 0.005 <= float(after) <= high + 0.005


@pytest.mark.light("prior", "exact")
def test_the_ratios_of_the_figure_are_one_over_the_mean_weight() -> None:
    for caption, ratio in (("caption 1", 1.50), ("caption 2", 3.2)):
        mean, words = WORKED[caption]
        assert 1 / mean == pytest.approx(ratio, abs=0.006)
        for (before, blind, _), after in zip(words, worked()[caption].values(), strict=True):
            assert after / (before * (1 - blind)) == pytest.approx(1 / mean, rel=1e-5)


@pytest.mark.light("prior", "size")
def test_the_size_command_counts_llava_its_reference_and_nothing_added(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "prior", "--variant", "llava-1.5-7b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == {"total": 7_063_427_072, "added": 0}
    assert found["reference"]["parameters"] == 7_063_427_072 - 303_507_456 - 20_979_712  # without CLIP and connector
    a_layer = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert found["reference"]["trained, in adapters"] == 32 * 256 * a_layer
    with pytest.raises(UserError, match="no variant 'llava-1.5-8b'; did you mean 'llava-1.5-7b'"):
        get("prior").size("llava-1.5-8b")


ROWS = [row(name, f"a grey square of tone {number}") for number, name in enumerate("abcdefghijklmnop")]


def trained(data: Path | str, out: Path, *more: str) -> int:
    words = ["--data", str(data), "--out", str(out), "--steps", "3", "--precision", "fp32"]
    return main(["train", "prior", *words, *more, "--set", *SMALL])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conversations(tmp_path_factory.mktemp("data"), ROWS)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run of a training through the command line, and the files on the way to its first loss."""
    out = tmp_path_factory.mktemp("prior") / "run"
    with files_on_the_way_to("tessera.train.lvlm:prioritised") as files:
        assert trained(data, out) == 0
    return out, files


def test_a_step_goes_through_six_files_from_the_command_to_the_loss(run: tuple[Path, list[str]]) -> None:
    assert run[1] == [
        "cli/training.py",
        "papers/prior.py",
        "train/engine.py",
        "train/step.py",
        "train/lvlm.py",
        "objectives/prioritised.py",
    ]


@pytest.mark.light("prior", "use")
def test_two_references_then_the_model_learn_a_user_s_conversations(run: tuple[Path, list[str]]) -> None:
    lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["reference-0", "reference-1", "pretrain"]
    last = lines[-1]
    assert last["words"] == pytest.approx(last["unweighted"] + last["covariance"], rel=1e-4)
    assert last["loss"] == last["words"] != last["unweighted"]
    scores = Scores.load(run[0] / "scores.safetensors")
    assert len(scores.rows) in (15, 14, 13)  # of 16, some are kept out of training
    assert ((scores.values >= 0) & (scores.values <= 1)).all()


@pytest.mark.light("prior", "use")
def test_the_trained_folder_answers_in_a_fresh_process(run: tuple[Path, list[str]], data: Path) -> None:
    words = [str(data.parent / "c.png"), "What is it?", "--model", str(run[0] / "model"), "--json"]
    ran = subprocess.run([sys.executable, "-m", "tessera", "ask", *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads(ran.stdout)
    assert row["question"] == "What is it?"
    assert isinstance(row["answer"], str)


@pytest.mark.light("prior", "use")
def test_the_trained_folder_writes_captions_through_the_command_line(
    run: tuple[Path, list[str]], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [str(data.parent / f"{name}.png") for name in "ab"]
    assert main(["caption", *pictures, "--model", str(run[0] / "model"), "--json"]) == 0
    assert [isinstance(row["caption"], str) for row in json.loads(capsys.readouterr().out)] == [True, True]


@pytest.mark.light("prior", "exact")
def test_the_parameters_are_those_of_the_model_without_prior(run: tuple[Path, list[str]]) -> None:
    found = read_folder(run[0] / "model", LVLMForConditionalGeneration, torch.float32, "cpu").state_dict()
    plain = Parts.of("mini", {}).model(vision_feature_layer=RECIPES["mini"].layers).state_dict()
    assert {name: weight.shape for name, weight in found.items()} == {n: w.shape for n, w in plain.items()}
    assert all(torch.equal(found[name], plain[name]) for name in plain if name.startswith("vision."))


@pytest.mark.light("prior", "weights")
def test_the_trained_model_written_in_llava_s_layout_says_the_same_through_transformers(
    run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    ours = read_folder(run[0] / "model", LVLMForConditionalGeneration, torch.float32, "cpu")
    save_llava(ours, tmp_path)
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    place = ours.config.image_token_id
    ids = torch.tensor([[1, *[place] * ours.num_image_tokens(), 30, 40, 50]])
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(ours(ids, pixel_values=pixels).logits, said, atol=1e-4, rtol=1e-4)


@pytest.mark.light("prior", "use")
def test_published_parts_from_their_folders_are_trained_though_they_have_no_image_token(
    data: Path, tmp_path: Path
) -> None:
    drawn: Any = ScenesWorld(train_pictures=200)
    llama(tmp_path / "llama", drawn)
    clip(tmp_path / "clip")
    words = ["--size", "published", "--parts", f"language={tmp_path / 'llama'}", f"vision={tmp_path / 'clip'}"]
    settings = ["--data", str(data), "--out", str(tmp_path / "run"), "--steps", "3", "--precision", "fp32", "--set"]
    assert main(["train", "prior", *words, *settings, *SMALL, "accumulate=2", "row_length=500"]) == 0
    found = read_folder(tmp_path / "run/model", LVLMForConditionalGeneration, torch.float32, "cpu")
    assert found.config.image_token_id == load_tokenizer(tmp_path / "run/model").convert_tokens_to_ids("<image>")
    assert found.config.image_token_id == found.config.text_config.vocab_size


def test_a_finished_run_resumed_keeps_its_scores_and_its_weights(
    run: tuple[Path, list[str]], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_file(run[0] / "model/model.safetensors")
    monkeypatch.setattr("tessera.papers.prior.score", None)
    assert trained(data, run[0], "--resume") == 0
    after = load_file(run[0] / "model/model.safetensors")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.light("prior", "use")
def test_scores_of_other_tokens_end_the_training_in_a_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    Scores({bytes(16): np.ones(3, np.float16)}).save(out / "scores.safetensors")
    assert trained(data, out) == 2
    assert "are not those that the text-only reference scored" in capsys.readouterr().err
    assert not (out / "model").exists()


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "tags": ([row(name, "a cat", "<image><image> What?") for name in "abcd"], "2 <image> tags but 1 pictures"),
    "role": ([row(name, "a cat", who="robot") for name in "abcd"], "unknown role 'robot'"),
    "same": ([row(name, "a cat") for name in "abcd"], "too few different captions to make two halves"),
}


@pytest.mark.light("prior", "use")
@pytest.mark.parametrize("case", BAD)
def test_conversations_that_cannot_be_learned_from_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, sentence = BAD[case]
    assert trained(conversations(tmp_path, rows), tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"settings": {"importance.alpha": "-1"}}, "alpha is -1.0; it is 0 or more"),
        ({"settings": {"importance.alfa": "1"}}, "no setting 'importance.alfa'; did you mean 'importance.alpha'"),
        ({"settings": {"rows": "6", "accumulate": "4"}}, "6 rows do not divide into 4 parts"),
        ({"settings": {"reference.rank": "-1"}}, "the rank of adapters is -1"),
        ({"parts": {"painter": "x"}}, "no role 'painter' here"),
        ({"size": "published"}, "published parts do not ship; name the folder of this one: --parts vision=FOLDER"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    options: dict[str, Any], sentence: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TesseraError, match=sentence):
        Prior().train(TrainOptions(tmp_path / "run", data=(str(data),), **options))
    assert not (tmp_path / "run" / "model").exists()


def test_the_steps_are_shared_among_the_stages_and_every_field_can_be_set() -> None:
    recipe = RECIPES["mini"].scaled(104)
    assert (recipe.reference.steps, recipe.steps, recipe.total) == (12, 80, 104)
    given = {"importance.alpha": "0.5", "importance.clip": "10", "reference.optimiser.lr": "0.5", "layers": "2,-1"}
    recipe = change(RECIPES["mini"], given)
    assert (recipe.importance.alpha, recipe.importance.clip, recipe.reference.optimiser.lr) == (0.5, 10.0, 0.5)
    assert recipe.layers == [2, -1]


def test_the_show_command_says_what_is_known_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "prior"]) == 0
    page = capsys.readouterr().out
    assert "19 % better than next-token prediction" in page
    assert "of this library's making" in page
