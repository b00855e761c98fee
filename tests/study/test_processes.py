"""A study in several processes. What they train is waited for through pipes and locks, never by the clock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tessera.cli import main, training
from tessera.errors import TrainingStopped, UserError
from tessera.papers import registry
from tessera.study import cells, processes
from tessera.study.engine import run
from tessera.study.sharing import alone, prepared
from tests.study.tiny_study import ARMS, make, studied

TIMES = ("seconds", "elapsed", "processes", "written", "notes", "arms")
TRAINED = {f"{arm}-{seed}": 1 for seed in range(3) for arm in ARMS}


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    return folder


def _run(way: str, marks: Path, work: Path, number: int = 1, **options: Any) -> dict[str, Any]:
    again = partial(make, way, marks)
    return run(again(), 3, out=work / "result.json", work=work, processes=number, make=again, **options)


def _trainings(marks: Path) -> dict[str, int]:
    """How often each pair of arm and seed was trained."""
    return {file.name: len(file.read_text().splitlines()) for file in marks.iterdir() if file.name != "pipe"}


def _without_times(result: Mapping[str, Any]) -> dict[str, Any]:
    arms = {name: {key: arm[key] for key in arm if key != "seconds"} for name, arm in result["arms"].items()}
    return {key: value for key, value in result.items() if key not in TIMES} | {"arms": arms}


def test_two_processes_at_once_write_the_result_of_one(tmp_path: Path, marks: Path) -> None:
    told: list[str] = []
    one = _run("alone", marks, tmp_path / "one")
    for file in marks.iterdir():
        if file.name != "pipe":
            file.unlink()
    two = _run("together", marks, tmp_path / "two", 2, tell=told.append)
    assert _without_times(two) == _without_times(one)
    assert json.loads((tmp_path / "two" / "result.json").read_text()) == two
    assert (one["processes"], two["processes"]) == (1, 2) and one["notes"] == []
    assert [note.split(", in")[0] for note in two["notes"]] == ["6 of 6 trainings ran in 2 processes at once"]
    assert _trainings(marks) == TRAINED
    assert told[0].startswith("2 processes of ") and len(told) == 7  # and each pair once
    assert not any("kept from before" in line for line in told) and "left" not in told[-1]


def test_a_study_whose_process_was_killed_goes_on(tmp_path: Path, marks: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"process . of 2 was ended by SIGKILL.*run the same command to go on"):
        _run("killed", marks, tmp_path / "work", 2)
    assert not (tmp_path / "work" / "result.json").exists()
    result = _run("killed", marks, tmp_path / "work")
    assert result["verdict"] == "holds"
    assert _trainings(marks).keys() == TRAINED.keys() and _trainings(marks)["new-1"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path, marks: Path) -> None:
    work = tmp_path / "work"
    words = [sys.executable, "-m", "tests.study.tiny_study", "endless", str(marks), str(work)]
    places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(words, env=os.environ | places, stderr=subprocess.DEVNULL)
    os.close(os.open(marks / "pipe", os.O_RDONLY))  # one of them trains
    parent.send_signal(number)
    parent.wait()
    study = make("endless", marks)
    for arm in study.arms:
        for seed in range(3):
            with alone(work, cells.file_of(study, arm, seed, work)).acquire(timeout=120):
                assert not cells.file_of(study, arm, seed, work).exists()


@pytest.fixture
def tiny_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tessera reproduce tiny --study WAY --data MARKS`."""

    class Tiny(registry.Paper):
        slug = "tiny"
        studies = {way: partial(studied, "tiny", way) for way in ("alone", "failing")}

    monkeypatch.setattr(training, "get", lambda slug: Tiny())
    monkeypatch.setattr(registry, "_studied", studied)


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_is_said_once(
    number: int, tiny_paper: None, tmp_path: Path, marks: Path, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["reproduce", "tiny", "--study", "failing", "--data", str(marks), "--processes", str(number)]
    assert main(line) == 2
    said = capfd.readouterr().err
    assert said.splitlines()[-1] == "tessera: the pictures of this study are gone"
    assert said.count("are gone") == 1 and "Traceback" not in said
    assert not (tmp_path / "results").exists()


def test_the_command_line_runs_a_study_in_processes(
    tiny_paper: None, tmp_path: Path, marks: Path, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "tiny", "--study", "alone", "--data", str(marks), "--processes", "2"]) == 0
    assert "6 of 6 trainings ran in 2 processes at once" in capfd.readouterr().out
    assert json.loads((tmp_path / "results" / "tiny-alone.json").read_text())["verdict"] == "holds"
    assert _trainings(marks) == TRAINED


def test_what_cannot_be_run_in_processes_is_one_sentence(tmp_path: Path, marks: Path, capsys: Any) -> None:
    with pytest.raises(UserError, match="run it in one, not 2"):
        run(make("alone", marks), 3, out=tmp_path / "r.json", work=tmp_path / "work", processes=2)
    assert main(["reproduce", "vl-gpt", "--processes", "0"]) == 2
    assert "--processes takes a whole number of 1 or more, not '0'" in capsys.readouterr().err


def test_a_finished_study_starts_no_process(tmp_path: Path, marks: Path) -> None:
    first = _run("alone", marks, tmp_path / "work")
    again = _run("alone", marks, tmp_path / "work", 2)
    assert again["processes"] == 1 and _trainings(marks) == TRAINED
    assert again["claims"] == first["claims"]
    assert again["notes"] == ["6 of 6 trainings were kept from an earlier run of this study"]


def test_a_pair_in_another_process_s_hands_is_left_to_it(tmp_path: Path, marks: Path) -> None:
    study = make("alone", marks)
    file = cells.file_of(study, study.arms[0], 0, tmp_path)
    with alone(tmp_path, file):
        assert not cells.train(study, study.arms[0], 0, tmp_path, wait=False)
    assert cells.train(study, study.arms[0], 0, tmp_path, wait=False) and file.is_file()
    assert not cells.train(study, study.arms[0], 0, tmp_path)


def test_what_arms_share_is_written_once(tmp_path: Path) -> None:
    file, written = tmp_path / "shared" / "part.json", []

    def write() -> None:
        written.append(file)
        file.parent.mkdir()
        file.write_text("{}")

    assert [prepared(tmp_path, file, write) for _ in range(2)] == [file] * 2
    assert written == [file]


@pytest.mark.parametrize(
    ("cores", "number", "said", "threads"),
    [(8, 2, "", 4), (2, 2, "", 1), (2, 4, "", 1), (8, 2, "1", 1), (8, 2, "16", 4), (8, 3, "many", 2)],
)
def test_each_process_has_its_share_of_the_cores(
    cores: int, number: int, said: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "cores", lambda: cores)
    monkeypatch.setenv(processes.THREADS, said)
    assert processes.threads_each(number) == threads
