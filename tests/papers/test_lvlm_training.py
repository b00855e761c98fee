"""What trainings of language models with eyes share on the command line: which parts learn and how, pictures of any
shape, rows without a picture, and refusals that leave nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import tessera
from tessera.cli import main
from tessera.data.blind import Scores
from tessera.models.folder import read_folder
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.models.lvlm.language import read_language_model
from tessera.papers.fourier_vlm import RECIPES
from tessera.papers.settings import change
from tessera.train.lvlm import NextWord
from tessera.train.select import matches
from tessera.vision.registry import create
from tessera.zoo.parts import locate
from tests.papers.conversations_made import conversations, row

NAMES = "abcdefghijklmnop"
ROWS = [row(name, f"a grey square of tone {number}") for number, name in enumerate(NAMES)]
BLIND = [
    {
        "id": f"blind {number}",
        "conversations": [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": said}],
    }
    for number, said in enumerate(("one", "two", "three", "four"))
]
FOURIER = ["connect.rows=2", "instruct.rows=2", "row_length=256", "keep_side=2"]
PRIOR = ["rows=2", "row_length=512", "reference.rows=2", "reference.rank=2"]


def train(slug: str, data: Path, out: Path, *settings: str, steps: int = 3) -> int:
    small = {"fourier-vlm": FOURIER, "prior": PRIOR}[slug]
    line = ["train", slug, "--data", str(data), "--out", str(out), "--steps", str(steps), "--precision", "fp32"]
    return main([*line, "--set", *small, *settings])


def read(run: Path) -> LVLMForConditionalGeneration:
    return read_folder(run / "model", LVLMForConditionalGeneration, torch.float32, "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conversations(tmp_path_factory.mktemp("data"), ROWS)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows; every second picture is four encoder's pictures wide."""
    file = conversations(tmp_path_factory.mktemp("wide"), ROWS)
    for number, name in enumerate(NAMES[::2]):
        Image.new("RGB", (256, 64), (20 * number, 100, 255 - 20 * number)).save(file.parent / f"{name}.png")
    return file


def changed(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    """The parameters in which two modules differ."""
    held = before.state_dict()
    return {name for name, weight in after.state_dict().items() if not torch.equal(weight, held[name])}


# ---- which parts learn


@pytest.mark.parametrize(
    ("slug", "vision", "language"),
    [("fourier-vlm", "frozen", "lora"), ("fourier-vlm", "lora", "frozen"), ("prior", "full", "lora")],
)
def test_the_parts_that_learn_are_those_that_were_named_and_the_saved_model_is_plain(
    slug: str, vision: str, language: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = [f"vision={vision}", f"language={language}", "lora.rank=2", "lora.alpha=4"]
    assert train(slug, data, tmp_path / "run", *how) == 0
    model = read(tmp_path / "run")
    assert not any("lora" in name for name in model.state_dict())
    eyes = changed(create(locate("mini/clip")), model.vision)
    words = changed(read_language_model(locate("mini/lm")), model.language_model)
    assert (bool(eyes), bool(words)) == (vision != "frozen", language != "frozen")
    if language == "lora":  # on linear layers of the blocks alone
        assert all("layers." in name and name.endswith("_proj.weight") for name in words)
    capsys.readouterr()
    words_of = ["ask", str(data.parent / "c.png"), "What is it?", "--model", str(tmp_path / "run/model"), "--json"]
    assert main(words_of) == 0
    assert isinstance(json.loads(capsys.readouterr().out)[0]["answer"], str)


def test_a_run_with_adapters_goes_on_where_it_was_and_gives_the_same_model(data: Path, tmp_path: Path) -> None:
    how = ["language=lora", "lora.rank=2"]
    assert train("fourier-vlm", data, tmp_path / "run", *how) == 0
    before = read(tmp_path / "run").state_dict()
    line = ["train", "fourier-vlm", "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "3", "--resume"]
    assert main([*line, "--precision", "fp32", "--set", *FOURIER, *how]) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in read(tmp_path / "run").state_dict().items())


def test_each_choice_is_a_pattern_that_fits_what_it_names() -> None:
    names = [
        "connector.mlp.fc1.weight", "vision.block.weight", "vision.block.lora_A.default.weight",
        "language_model.layer.weight", "language_model.layer.lora_B.default.weight",
    ]  # fmt: skip

    def learned(**chosen: str) -> set[str]:
        return {name for one in change(RECIPES["mini"], chosen).trainable for name in matches(one, names)}

    assert learned(language="frozen") == {names[0]}
    assert learned(language="lora") == {names[0], names[4]}
    assert learned() == {names[0], *names[3:]}
    assert learned(language="frozen", vision="lora") == {names[0], names[2]}
    assert learned(vision="full", language="full") == set(names)


# ---- pictures of any shape


def test_a_wide_picture_is_read_in_tiles_in_training_and_by_the_saved_model(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[tuple[list[int], int]] = []
    embeds = NextWord.embeds

    def spied(self: NextWord, tuned: Any, images: Any) -> Tensor:
        found = embeds(self, tuned, images)
        shown.append(([image.pil().width for image in images], len(found)))
        return found

    monkeypatch.setattr(NextWord, "embeds", spied)
    assert train("fourier-vlm", wide, tmp_path / "run", "tiles=4", steps=6) == 0
    assert all(views == sum(5 if width == 256 else 1 for width in widths) for widths, views in shown)
    assert any(256 in widths for widths, _ in shown)

    folder = str(tmp_path / "run/model")
    chat = tessera.load(folder)
    asked: Callable[[Path], int] = lambda path: len(chat.builder.prompt(_asked(path)).input_ids)  # noqa: E731
    assert asked(wide.parent / "a.png") - asked(wide.parent / "b.png") == 4 * chat.model.num_image_tokens()
    pictures = [str(wide.parent / f"{name}.png") for name in "ab"]
    for line in (["caption", *pictures], ["ask", pictures[0], "What is it?"]):
        capsys.readouterr()
        seen: list[int] = []
        look = LVLMForConditionalGeneration.encode_images
        with monkeypatch.context() as patch:
            patch.setattr(
                LVLMForConditionalGeneration, "encode_images",
                lambda self, pixels, sizes=None: seen.append(len(pixels)) or look(self, pixels, sizes),  # noqa: B023
            )  # fmt: skip
            assert main([*line, "--model", folder, "--json"]) == 0
        assert sum(seen) == 5 + (len(pictures) - 1 if line[0] == "caption" else 0)
        json.loads(capsys.readouterr().out)


def _asked(path: Path) -> list[Any]:
    from tessera.data.sample import Image as Picture
    from tessera.data.sample import Text

    return [Picture(path, False, role="user"), Text("What is it?", False, "user")]


def test_tiles_and_trained_eyes_go_together(wide: Path, tmp_path: Path) -> None:
    assert train("prior", wide, tmp_path / "run", "tiles=2", "vision=full") == 0
    assert json.loads((tmp_path / "run/model/tessera.json").read_text())["tiles"] == 2


# ---- rows without a picture


def test_prior_leaves_conversations_without_a_picture_out_and_says_how_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = conversations(tmp_path, ROWS + BLIND)
    with caplog.at_level(logging.WARNING, logger="tessera.data"):
        assert train("prior", file, tmp_path / "run") == 0
    assert "4 of 19 samples show no picture and are no captions; left out" in caplog.text
    assert len(Scores.load(tmp_path / "run/scores.safetensors").rows) <= len(ROWS)


def test_captions_that_all_lack_a_picture_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("prior", conversations(tmp_path, BLIND), tmp_path / "run") == 2
    assert "samples shows a picture, and captions are of pictures" in capsys.readouterr().err


# ---- refusals


@pytest.mark.parametrize(
    ("slug", "settings", "sentence"),
    [
        ("prior", ["tiles=-1"], "tiles is -1; give 0, for the whole picture alone, or more"),
        ("prior", ["tiles=9"], "a picture takes up to 640 positions and a row has 512; raise row_length, or cut"),
        ("prior", ["lora.rank=0"], "adapters of rank 0, alpha 64 and dropout 0.0 cannot be"),
        ("prior", ["layers=99"], "vision_feature_layer is 99, but the encoder has"),
        ("prior", ["reference.rank=-1"], "the rank of adapters is -1"),
        ("fourier-vlm", ["language=loar"], "language cannot be 'loar'; did you mean 'lora'"),
        ("fourier-vlm", ["keep_side=30"], "more tokens are asked for than there are"),
        ("fourier-vlm", ["instruct.accumulate=3"], "2 rows do not divide into 3 parts; change one of them"),
        ("fourier-vlm", ["row_length=4"], "a picture takes up to 4 positions and a row has 4"),
    ],
)
def test_a_setting_that_is_refused_leaves_nothing(
    slug: str, settings: list[str], sentence: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(slug, data, tmp_path / "run", *settings) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--parts", "language=/nowhere"], "the tokenizer of /nowhere cannot be loaded"),
        (["--parts", "vision=/nowhere"], "/nowhere is no folder of a model"),
        (["--data", "broken"], "no sample that was tried can be used"),
    ],
)
def test_parts_and_data_that_are_refused_leave_nothing(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    for number in range(4):
        (tmp_path / f"broken/{number}.png").write_bytes(b"words")
        (tmp_path / f"broken/{number}.txt").write_text(f"a red square {number}")
    assert main(["train", "fourier-vlm", "--out", "run", "--steps", "2", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
