"""Logs: cut where a run goes on, the clock apart; progress without a terminal; callbacks that change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tessera.errors import TrainingStopped
from tessera.train import log
from tessera.train.engine import Callback, Event, Trainer
from tests.train.tiny import metrics, tiny_stage


def test_lines_after_the_step_and_a_broken_last_line_are_cut(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "loss": 0.1 * step}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(whole) + '{"step": 4, "lo')
    log.cut(file, 2)
    assert file.read_text() == "".join(whole[:2])
    log.cut(file, 0)
    assert file.read_text() == ""


def test_a_log_that_cannot_be_written_stops_the_run_with_a_sentence(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "timings.jsonl").symlink_to("/dev/full")
    trainer = Trainer(tmp_path, device="cpu")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingStopped, match="timings.jsonl cannot be written"):
        patch.setattr(log, "cut", lambda file, step: None)
        trainer.run([tiny_stage(steps=3)])


def test_the_clock_is_in_a_file_of_its_own(tmp_path: Path):
    Trainer(tmp_path, device="cpu").run([tiny_stage(steps=3)])
    assert set(metrics(tmp_path)[0]) == {"step", "stage", "loss", "text", "square", "order", "lr", "gradient_norm"}
    timings = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert [set(one) for one in timings] == [{"step", "stage", "seconds", "waited", "samples"}] * 3
    assert all(0 <= one["waited"] <= one["seconds"] and one["samples"] == 4 for one in timings)


def test_every_nth_step_is_logged_where_asked(tmp_path: Path):
    Trainer(tmp_path, device="cpu", log_every=5).run([tiny_stage(steps=12)])
    assert [one["step"] for one in metrics(tmp_path)] == [5, 10]


def test_callbacks_see_the_model_in_evaluation_mode_and_change_nothing(tmp_path: Path):
    seen = []

    def sample(event: Event) -> None:
        assert not event.model.training
        assert not torch.is_grad_enabled()
        torch.rand(100)
        event.note("a drawing")
        seen.append((event.step, event.stage.name))

    Trainer(tmp_path / "plain", device="cpu").run([tiny_stage()])
    Trainer(tmp_path / "watched", device="cpu", callbacks=[Callback(5, sample)]).run([tiny_stage()])
    assert seen == [(5, "one"), (10, "one")]
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("plain", "watched")]
    assert logs[0] == logs[1]


def test_without_a_terminal_progress_is_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log, "PLAIN_SECONDS", 0.0)
    Trainer(tmp_path, device="cpu").run([tiny_stage("align", steps=2), tiny_stage("tune", steps=3)])
    out, said = capsys.readouterr()
    assert out == ""
    lines = said.splitlines()
    assert lines[0].startswith("stage align: 501 values are trained, 0 are frozen; 2 steps")
    steps = [line for line in lines if line.startswith(("align ", "tune "))]
    assert [line.split()[1] for line in steps] == ["1/2", "2/2", "1/3", "2/3", "3/3"]
    assert all("loss" in line and "steps/s" in line and line.endswith("left") for line in steps)
    assert steps[-1].endswith("0:00 left")


def test_the_bar_is_drawn_in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    trainer = Trainer(tmp_path, device="cpu")
    trainer.reporter.console = log.Console(record=True, force_terminal=True, width=100)
    trainer.run([tiny_stage(steps=3)])
    assert "3/3 loss" in trainer.reporter.console.export_text()


def test_tensorboard_gets_the_metrics_or_a_sentence(tmp_path: Path):
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(log.UserError, match="pip install tensorboard"):
            Trainer(tmp_path, device="cpu", tensorboard=True).run([tiny_stage(steps=2)])
        return
    Trainer(tmp_path, device="cpu", tensorboard=True).run([tiny_stage(steps=2)])
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_seconds_read_as_a_clock():
    assert [log.clock(s) for s in (0.4, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
