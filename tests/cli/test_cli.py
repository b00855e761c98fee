"""The command line: what it accepts, what it says to a mistake, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.cli.options import parser_of
from tessera.cli.program import COMMANDS, main, usage
from tessera.errors import TrainingStopped, UserError
from tessera.papers import registry

FLAGS = {
    "papers": "--json --search",
    "show": "--json --results",
    "size": "--json --variant",
    "train": "--allow-other-data --data --out --parts --precision --resume --seed --set --size --steps --workers",
    "reproduce": "--data --json --model --out --processes --seeds --study",
    "caption": "--alpha --beta --debias --json --model",
    "ask": "--alpha --beta --debias --image --json --model",
    "draw": "--count --json --model --out --seed --sheet",
    "sample": "--count --guidance --json --model --of --out --seed --sheet --temperature --top-k --top-p",
    "reconstruct": "--json --model --out --sheet",
    "chat": "--alpha --beta --debias --image --model --out",
    "classify": "--json --model --top",
    "embed": "--model --out --text",
    "evaluate": "--alpha --beta --calibrate --debias --json --model --out --size --suite",
    "segment": "--json --model --out --phrase --scene --sheet",
    "act": "--env --episodes --foresee --goal --json --model --out --seed --sheet --steps --task",
    "cases run": "--endpoint --json --keep-order --model --model-name --modes --out --repeats --seed --style"
    " --temperature --timeout --together",
    "cases votes": "--json",
    "cases write": "--count --leak --out --seed",
    "zoo list": "--json",
    "zoo build": "--data --out --resume --seed --steps",
    "worlds list": "--json",
    "worlds show": "--count --out --split --task",
    "worlds export": "--count --out --shard --split --task",
    "bench": "--json --out",
    "doctor": "--json",
}


class FakeAssistant:
    """Answers with what it was asked, so that tests see what arrived."""

    abilities = ("caption", "ask", "draw", "chat", "embed")

    def caption(self, images: list[Image.Image]) -> list[str]:
        return [f"a picture of {image.size[0]} by {image.size[1]}" for image in images]

    def answer(self, images: list[Image.Image], questions: list[str]) -> list[str]:
        return [f"{question} {len(images)}" for question in questions]

    def draw(self, texts: list[str], *, seed: int) -> list[Image.Image]:
        return [Image.new("RGB", (8, 8), (seed, len(text), 0)) for text in texts]

    def chat(self, turns: list[Any]) -> list[Any]:
        if "<image>" in turns[-1].text:
            raise UserError("no picture to stand there")
        drawing = [Image.new("RGB", (8, 8))] if "draw" in turns[-1].text else []
        return [" ".join(f"{turn.role} {type(turn).__name__}" for turn in turns), *drawing]

    def embed(self, inputs: list[Any]) -> np.ndarray:
        return np.full((len(inputs), 3), float(isinstance(inputs[0], str)), np.float32)


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tessera.loading")
    module.load = lambda folder: FakeAssistant()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tessera.loading", module)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 10)).save(path)
    return path


def test_the_flags_of_every_command_are_frozen() -> None:
    found = {}
    for name, (place, _) in COMMANDS.items():
        module, options = place.split(":")
        parser = parser_of(getattr(import_module(f"tessera.cli.{module}"), options), name)
        found[name] = " ".join(sorted(flag for flag in parser._option_string_actions if flag not in ("-h", "--help")))
    assert found == FLAGS


def test_help_names_every_command_and_each_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert page.strip() == usage()
    for name in COMMANDS:
        assert f"  {name} " in page
        with pytest.raises(SystemExit) as ended:
            main([*name.split(), "--help"])
        assert ended.value.code == 0
        assert f"usage: tessera {name}" in capsys.readouterr().out


def test_help_of_a_group_names_its_commands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "--help"]) == 0
    page = capsys.readouterr().out
    assert "  zoo list " in page and "  zoo build " in page and "  papers " not in page


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("paprs", "there is no command 'paprs'; did you mean 'papers'?"),
        ("zoo", "'zoo' needs a word after it: list or build"),
        ("worlds shw x", "there is no command 'worlds shw'; did you mean 'show'?"),
        ("show vlgpt", "there is no paper 'vlgpt'; did you mean 'vl-gpt'?"),
        ("show", "tessera show: needs SLUG; see `tessera show --help`"),
        ("show prior extra", "tessera show: unrecognized arguments: extra"),
        ("papers --serch x", "tessera papers has no option '--serch'; did you mean '--search'?"),
        ("train vl-gpt --steps many", "--steps takes a whole number of 1 or more, not 'many'"),
        ("train vl-gpt --steps 0", "--steps takes a whole number of 1 or more, not '0'"),
        ("train vl-gpt --size minni", "--size does not know 'minni'; did you mean 'mini'?"),
        ("train vl-gpt --parts language", "'language' is not of the form key=value"),
        ("reproduce vl-gpt --seeds 2", "--seeds takes a whole number of 3 or more, not '2'"),
        ("size vl-gpt --variant tiny", "vl-gpt has no variant 'tiny'; it has one size, without a name"),
        ("train ganformer2", "'ganformer2' is in the catalogue but not built yet"),
        ("worlds show scnes", "did you mean 'scenes'"),
        ("worlds export scenes --out x --task pears", "did you mean 'pairs'"),
        ("caption /no/such.png --model m", "/no/such.png"),
        ("evaluate --model m --suite scnes", "there is no suite 'scnes'; did you mean 'scenes'?"),
        ("zoo build clp", "did you mean 'clip'"),
        ("bench backbone", "there is no bench 'backbone'; did you mean 'backbones'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    line: str,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("tessera: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (TrainingStopped("loss is nan"), 2), (BrokenPipeError(), 0)],
)
def test_endings_have_their_exit_codes(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def end(words: list[str]) -> None:
        raise raised

    monkeypatch.setattr("tessera.cli.program.run", end)
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert main(["papers"]) == code


def test_an_interrupted_run_gives_the_code_of_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = TrainingStopped("stopped by SIGTERM")
    stopped.exit_code = 143  # type: ignore[attr-defined]

    def end(words: list[str]) -> None:
        raise stopped

    monkeypatch.setattr("tessera.cli.program.run", end)
    assert main(["train", "vl-gpt"]) == 143


def test_a_bug_is_not_dressed_as_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(words: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tessera.cli.program.run", end)
    with pytest.raises(ZeroDivisionError):
        main(["papers"])


def test_papers_can_be_searched_and_read_by_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["papers", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 57
    assert main(["papers", "--search", "fourier"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("fourier-vlm")
    assert "Fourier-VLM: Compressing Vision Tokens" in lines[1]
    assert "image-text-to-text" in lines[1]
    assert main(["papers", "--search", "qwertz"]) == 0
    assert capsys.readouterr().out == "no paper is about 'qwertz'; `tessera papers` lists all\n"


def test_help_and_papers_start_without_the_heavy_libraries() -> None:
    code = (
        "import sys; from tessera.cli import main; main(['--help']); main(['papers']); main(['paprs']);"
        "print([name for name in ('torch', 'transformers', 'numpy', 'rich') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_python_dash_m_is_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "tessera", "show", "vlgpt"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr == "tessera: there is no paper 'vlgpt'; did you mean 'vl-gpt'? (`tessera papers` lists them)\n"


def test_train_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    class Fake:
        def train(self, options: registry.TrainOptions) -> Path:
            seen.append(options)
            return options.out / "model"

    monkeypatch.setattr("tessera.cli.training.get", lambda slug: Fake())
    line = "train vl-gpt --data scenes my/photos --seed 7 --resume --steps 9"
    line += " --parts language=/m/llama vision=/m/clip --parts painter=/m/sd --set align.batch=8"
    assert main(line.split()) == 0
    assert seen == [
        registry.TrainOptions(
            out=Path("runs/vl-gpt"),
            data=("scenes", "my/photos"),
            steps=9,
            seed=7,
            resume=True,
            parts={"language": "/m/llama", "vision": "/m/clip", "painter": "/m/sd"},
            settings={"align.batch": "8"},
        )
    ]
    assert "runs/vl-gpt/model" in capsys.readouterr().out


@pytest.mark.usefixtures("assistant")
def test_caption_and_ask_print_the_answer_alone_for_one_and_a_table_for_several(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say: Callable[..., int] = lambda *words: main([*words, "--model", "m"])  # noqa: E731
    assert say("caption", str(picture)) == 0
    assert capsys.readouterr().out == "a picture of 20 by 10\n"
    assert say("caption", str(picture), str(picture), "--json") == 0
    assert [row["caption"] for row in json.loads(capsys.readouterr().out)] == ["a picture of 20 by 10"] * 2
    assert say("ask", str(picture), "how many?") == 0
    assert capsys.readouterr().out == "how many? 1\n"
    assert say("ask", str(picture), "how many?", "why?") == 0
    assert "why? 2" in capsys.readouterr().out


@pytest.mark.usefixtures("assistant")
def test_draw_writes_png_files_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    line = [
        "draw",
        "a red circle",
        "two",
        "--model",
        "m",
        "--out",
        str(out),
        "--count",
        "2",
        "--seed",
        "3",
        "--json",
    ]
    assert main(line) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["text"], row["seed"]) for row in rows] == [(t, n) for n in (3, 4) for t in ("a red circle", "two")]
    assert {path.name for path in out.iterdir()} == {f"00{n}-{seed}.png" for n in (0, 1) for seed in (3, 4)}
    with Image.open(rows[2]["image"]) as drawn:
        assert drawn.getpixel((0, 0)) == (4, 12, 0)


@pytest.mark.usefixtures("assistant")
def test_chat_takes_pictures_in_and_gives_drawings_out(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter([f"/image {picture}", "what is this?", "", "draw it", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", "m", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    first = "user Image user Text"
    assert said == [first, f"{first} assistant Text user Text", f"[drawing: {tmp_path / 'chat-000.png'}]"]
    assert (tmp_path / "chat-000.png").is_file()


@pytest.mark.usefixtures("assistant")
@pytest.mark.parametrize("terminal", [True, False])
def test_a_slip_ends_a_scripted_chat_and_leaves_a_spoken_one_as_it_was(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["hello", "<image> what?", "well?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    assert main(["chat", "--model", "m"]) == (0 if terminal else 2)
    printed = capsys.readouterr()
    assert printed.err == "tessera: no picture to stand there\n"
    assert printed.out.splitlines() == ["user Text", *(["user Text assistant Text user Text"] if terminal else [])]


@pytest.mark.usefixtures("assistant")
def test_embed_prints_or_writes_vectors(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "some words", "--text", "--model", "m"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"input": "some words", "vector": [1.0, 1.0, 1.0]}]
    out = tmp_path / "v.safetensors"
    assert main(["embed", str(picture), "--model", "m", "--out", str(out)]) == 0
    from safetensors.numpy import load_file

    assert load_file(out)["embeddings"].shape == (1, 3)


def test_worlds_are_shown_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["worlds", "show", "scenes", "--count", "3", "--out", str(sheet)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    with Image.open(sheet) as drawn:
        assert drawn.size == (3 * 132 - 4, 128)
    line = f"worlds export scenes --out {tmp_path / 'shards'} --count 5 --shard 2 --task questions"
    assert main(line.split()) == 0
    assert "5 samples in 3 shards" in capsys.readouterr().out
    assert len(list((tmp_path / "shards").iterdir())) == 3


def test_doctor_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cores"] >= 1
    assert found["precision"] in ("fp32", "bf16")
    assert set(found["versions"]) >= {"torch", "transformers", "diffusers"}
    assert found["notes"]
    assert main(["doctor"]) == 0
    assert "train vl-gpt" in capsys.readouterr().out
