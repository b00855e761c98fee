"""Bad data, full disks, kills and wrong resumes on the command line of a training: what is skipped is named, what is
refused is refused in one sentence, and what was saved before stays whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tessera.cli import main
from tessera.data.worlds import open_world
from tessera.train import checkpoint
from tessera.zoo.parts import SHIPPED
from tests.cli import spoilt
from tests.cli.spoilt import Refused, cut
from tests.cli.trainings import line
from tests.papers.published_tiny import published_parts

pytestmark = pytest.mark.usefixtures("no_report")
ROOT = Path(__file__).parents[2]
BROKEN = ("zero.png", "words.jpg", "cut.png", "huge.png")
WHOLE = {"0-align", "1-pretrain", "2-instruct", "3-write"}


def captioned(folder: Path, pictures: dict[str, bytes]) -> Path:
    """Pictures with sentences beside them."""
    folder.mkdir(parents=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text(f"this is {name}")
    return folder


def pictures(count: int) -> dict[str, bytes]:
    return {f"sound-{number}.png": spoilt.encoded(spoilt.photo(number)) for number in range(count)}


@dataclass(frozen=True)
class Trained:
    """What `tests.cli.trainings` left."""

    data: Path
    out: Path
    codes: dict[str, int]

    def said(self, name: str) -> str:
        return (self.out / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trainings on a folder of all sorts: odd pictures, broken ones, captions that are none or far too long."""
    place = tmp_path_factory.mktemp("trained")
    broken = {f"broken-{name}": spoilt.BAD_PICTURES[name][0] for name in BROKEN}
    data = captioned(place / "mine", spoilt.ODD_PICTURES | broken | pictures(4))
    for number, text in enumerate(("", "x" * 1_000_000, "red " * 3000)):
        (data / f"sound-{number}.txt").write_text(text)
    words = [sys.executable, "-m", "tests.cli.trainings", str(data), str(place)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Trained(data, place, json.loads(done.stdout.splitlines()[-1]))


def stages(run: Path) -> set[str]:
    """Stages that were finished and are whole."""
    folders = list((run / "stages").iterdir())
    for folder in folders:
        checkpoint.read(folder)
    return {folder.name for folder in folders}


# ---- data


def test_what_cannot_be_read_is_skipped_named_and_counted(trained: Trained) -> None:
    assert trained.codes["run"] == 0
    said = trained.said("run")
    assert "left out: 1 the text is empty (sound-0.png); 1 a caption over 100 kB (sound-1.png)" in said
    skipped = re.findall(r"^skipped .*?: (?:\S*/)?([\w.-]+): (.*)$", said, re.MULTILINE)
    reasons = {f"broken-{name}": spoilt.BAD_PICTURES[name][1] for name in BROKEN}
    assert len({name for name, _ in skipped} & reasons.keys()) >= 2
    assert all(reasons[name] in reason for name, reason in skipped if name in reasons)
    assert not {name for name, _ in skipped} & spoilt.ODD_PICTURES.keys()
    assert "Traceback" not in said
    assert stages(trained.out / "run") == WHOLE


def test_a_caption_beyond_the_row_is_skipped_with_its_length(trained: Trained) -> None:
    assert re.search(r"skipped \S+/mine train\[\d+\]: the sample needs \d+ tokens, limit \d+", trained.said("run"))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds no picture: 0 text files and 0 tables were seen"),
        ({"a.txt": b"words alone"}, "holds no picture: 1 text files"),
        ({"a.png": b"", "b.png": b""}, "holds no usable sample: 2 without a caption (a.png, b.png)"),
        ({"cat/a.png": b"", "cat/b.png": b"x", "cat/c.png": b"y"}, "no sample that was tried can be used; the last:"),
        ({"cat/a.png": spoilt.encoded(spoilt.photo())}, "is one group of samples and cannot be split; add more"),
        ({"a.png": b"", "m.csv": b"image,words\na.png,x"}, "needs the columns file_name and text (or caption)"),
        ({"a.png": b"", "m.csv": b"\xff\xfe\0x"}, "cannot be read as a UTF-8 table"),
        ({"a.png": b"", "metadata.jsonl": b"[1]\n{"}, "is not valid JSON: line 2, column 2"),
    ],
)
def test_a_folder_without_use_says_why(files: dict[str, bytes], sentence: str, here: Path, refused: Refused) -> None:
    (here / "mine").mkdir()
    for name, data in files.items():
        (here / "mine" / name).parent.mkdir(exist_ok=True)
        (here / "mine" / name).write_bytes(data)
    assert sentence in refused(*line("mine", "run"))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.json", "{", "a.json is not valid JSON: line 1, column 2"),
        ("a.json", "[" * 100_000, "a.json holds JSON that is too deep"),
        ("a.json", "[" + "1" * 5000 + "]", "a number that is too long"),
        ("a.json", "[]", "a.json is an empty list: 0 samples"),
        ("a.json", '{"images": [1], "annotations": []}', "not a COCO file: images is not a list of objects"),
        ("a.json", '{"images": [], "annotations": [{"image_id": [1], "caption": "x"}]}', "of a picture that is not"),
        ("a.json", '[{"image": 5, "conversations": []}]', "whose image is no path or list of paths (entry 0)"),
        (
            "a.parquet",
            "PAR1",
            "unknown format '.parquet'; known are a folder of pictures or of LeRobot episodes, .tar shards",
        ),
        ("a.tar", "", "a.tar is not an uncompressed tar file"),
    ],
)
def test_a_file_of_no_use_says_why(name: str, text: str, sentence: str, here: Path, refused: Refused) -> None:
    (here / name).write_text(text)
    assert sentence in refused(*line(name, "run"))


def test_conversations_whose_pictures_are_elsewhere_stop_before_the_first_stage(here: Path, refused: Refused) -> None:
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "That."}]
    rows = [{"id": number, "image": f"gone/{number}.png", "conversations": turns} for number in range(30)]
    (here / "chat.json").write_text(json.dumps(rows))
    said = refused(*line("chat.json", "run"))
    assert "no sample that was tried can be used" in said and "gone/" in said and "no such file" in said


def test_a_truncated_tar_gives_what_lies_before_the_cut(here: Path, refused: Refused, capsys) -> None:
    assert "a.tar is cut short in its first member" in refused(*line(spoilt.tar(here / "a.tar", 3, 700), "run"))
    assert main(["worlds", "show", str(spoilt.tar(here / "b.tar", 12, 60_000)), "--out", "sheet.png"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_too_many_broken_pictures_stop_the_run_with_their_number(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioned(here / "mine", {f"{number}.png": b"" for number in range(60)} | pictures(3))
    assert main(line("mine", "run", "--set", "align.batch=48")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"tessera: 11 of \d+ samples could not be used, more than the 10 allowed; the last was ", last)
    assert "(0 bytes); repair or remove them" in last
    assert not (here / "run" / "model").exists() and not (here / "run" / "stages").exists()


# ---- kills and full disks


def test_kill_9_inside_a_save_loses_that_save_alone(trained: Trained) -> None:
    assert (trained.codes["killed"], trained.codes["killed again"]) == (-9, 0)
    said = trained.said("killed again")
    assert "left by a run that was killed while saving" in said
    assert "stage align: was finished before, its final weights are loaded" in said
    _assert_same(trained.out / "run", trained.out / "killed")


def test_a_full_disk_in_a_save_leaves_what_was_saved_before(trained: Trained) -> None:
    assert (trained.codes["full"], trained.codes["full again"]) == (2, 0)
    last = trained.said("full").splitlines()[-1]
    assert last.startswith("tessera: the disk is full: writing ") and "MiB free; make room or choose another" in last
    _assert_same(trained.out / "run", trained.out / "full")


def test_a_full_disk_at_the_end_leaves_no_half_model(trained: Trained) -> None:
    assert (trained.codes["no model"], trained.codes["no model again"]) == (2, 0)
    assert trained.said("no model").splitlines()[-1].startswith("tessera: the disk is full: writing ")
    left = trained.out / "left by no model"
    assert stages(left) == WHOLE
    assert not [path for path in left.iterdir() if "model" in path.name]
    _assert_same(trained.out / "run", trained.out / "no model")


def _assert_same(run: Path, other: Path) -> None:
    """Log and weights, byte for byte, and nothing left over."""
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert names == {str(path.relative_to(other)) for path in other.rglob("*")}
    for name in ("metrics.jsonl", "model/model.safetensors", *(f"stages/{one}/weights.safetensors" for one in WHOLE)):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("command", ["draw", "embed", "worlds"])
def test_a_full_disk_leaves_no_half_answer(
    command: str, model: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    monkeypatch.setattr("safetensors.numpy.save_file", full)
    words = {
        "draw": ["draw", "a star", "--model", model, "--out", "."],
        "embed": ["embed", "a star", "--text", "--model", model, "--out", "x.safetensors"],
        "worlds": ["worlds", "export", "scenes", "--count", "2", "--out", "shards"],
    }
    assert "the disk is full: writing " in refused(*words[command])


# ---- resumes


@pytest.fixture
def unchanged(trained: Trained, refused: Refused):
    """`refused`, after which the run is what it was as well."""

    def run(*words: object) -> str:
        def state() -> dict[Path, int]:
            return {path: path.stat().st_mtime_ns for path in (trained.out / "run").rglob("*")}

        before = state()
        said = refused(*words)
        assert state() == before
        return said

    return run


@pytest.mark.parametrize(
    ("more", "sentences"),
    [
        ("", ["holds a run already; go on with --resume, or choose another --out"]),
        ("--resume --steps 30", ["other settings", "recipe.align.steps: 1 -> "]),
        ("--resume --seed 1", ["other settings (seed: 0 -> 1)", "start a new run in another --out"]),
        ("--resume --precision bf16", ["precision: 'fp32' -> 'bf16'"]),
        ("--resume --set tokenizer.width=64", ["recipe.tokenizer.width: 32 -> 64"]),
        ("--resume --data scenes", ["data with fingerprint", "give the old data, or pass --allow-other-data"]),
    ],
)
def test_a_resume_with_something_else_names_it(
    more: str, sentences: list[str], trained: Trained, unchanged: Refused
) -> None:
    said = unchanged(*line(trained.data, trained.out / "run", *more.split()))
    assert [sentence for sentence in sentences if sentence not in said] == [], said


def test_a_resume_on_data_that_grew_is_refused_and_may_be_forced(
    trained: Trained, unchanged: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = Path(shutil.copytree(trained.data, tmp_path / "grown"))
    (grown / "new.png").write_bytes(spoilt.encoded(spoilt.photo(99)))
    (grown / "new.txt").write_text("a new one")
    assert "--allow-other-data" in unchanged(*line(grown, trained.out / "run", "--resume"))
    copy = shutil.copytree(trained.out / "run", tmp_path / "run")
    assert main(line(grown, copy, "--resume", "--allow-other-data")) == 0
    assert "was finished before" in capsys.readouterr().err


def test_a_resume_at_another_size_names_both(
    trained: Trained, unchanged: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = published_parts(tmp_path / "parts", open_world("scenes"))
    capsys.readouterr()  # the bars of saving them
    given = [f"{role}={place}" for role, place in parts.items()]
    said = unchanged(*line("scenes", trained.out / "run", "--resume", "--size", "published", "--parts", *given))
    assert "size: 'mini' -> 'published'" in said


def test_a_resume_beside_other_frozen_parts_is_refused(trained: Trained, unchanged: Refused, tmp_path: Path) -> None:
    other = Path(shutil.copytree(SHIPPED / "clip", tmp_path / "clip"))
    held = load_file(other / "model.safetensors")
    save_file({name: value * 2 for name, value in held.items()}, other / "model.safetensors", {"format": "pt"})
    said = unchanged(*line(trained.data, trained.out / "run", "--resume", "--parts", f"vision={other}"))
    assert "was trained beside other frozen weights" in said and "load the parts that it was started with" in said


def test_a_damaged_stage_is_named_with_the_way_out(trained: Trained, refused: Refused, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained.out / "run", tmp_path / "run"))
    cut("stages/0-align/weights.safetensors", 1000)(copy)
    said = refused(*line(trained.data, copy, "--resume"))
    assert "weights.safetensors has 1000 bytes, not " in said and "delete the folder to train this stage again" in said
