"""Races: taking turns, medians, verdicts, the result file; and that both sides compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CvtConfig

from tessera.cli import main
from tessera.study import bench
from tessera.study.bench import Race, run, verdict
from tessera.study.bench_backbones import cvt_pair

CPU = torch.device("cpu")
TINY = CvtConfig(embed_dim=(64, 64, 64), num_heads=(1, 1, 1), depth=(1, 2, 3), drop_path_rate=(0.0, 0.0, 0.0))


def race(ours=lambda: None, theirs=lambda: None) -> Race:
    return Race(name="a", peer="b", ours=ours, theirs=theirs, macs=1e6, dtype=torch.float32, least=0.9, aim=1.5)


@pytest.fixture
def small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PRODUCT", {"cpu": 16})


def test_both_take_turns_and_neither_always_comes_first(small_product: None) -> None:
    order: list[str] = []
    run(race(lambda: order.append("ours"), lambda: order.append("theirs")), CPU, rounds=4)
    measured = order[2 * bench.WARM :]
    rounds = [tuple(measured[at : at + 2]) for at in range(0, 8, 2)]
    assert rounds == [("ours", "theirs"), ("theirs", "ours")] * 2


def test_the_speed_is_the_median_of_the_rounds(monkeypatch: pytest.MonkeyPatch, small_product: None) -> None:
    one = race()
    seconds = {one.ours: iter([2.0, 2.0, 2.0]), one.theirs: iter([2.0, 3.0, 40.0])}
    monkeypatch.setattr(bench, "_time", lambda way, device: next(seconds[way]) if way in seconds else 16**3 * 1e-6)
    found = run(one, CPU, rounds=3)
    assert (found["speed"], found["slowest"], found["fastest"]) == (1.5, 1.0, 20.0)
    assert (found["ours_ms"], found["theirs_ms"]) == (2000.0, 3000.0)
    assert found["of_ceiling"] == pytest.approx(0.5)  # 10^6 in 2 s, where the machine does 10^6 in 1 s
    assert found["verdict"] == "reaches the aim"


def test_a_speed_is_judged_by_what_is_demanded_and_what_is_hoped_for() -> None:
    assert [verdict(speed, race()) for speed in (0.89, 0.9, 1.49, 1.5)] == [
        "too slow", "fast enough", "fast enough", "reaches the aim",
    ]  # fmt: skip


def test_the_command_writes_a_result_and_prints_a_row(
    tmp_path: Path, small_product: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "devices", lambda: [CPU])
    monkeypatch.setattr("tessera.study.bench_backbones.races", lambda device: iter([race()]))
    assert main(["bench", "backbones", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["race", "device", "type"]
    assert printed[1].startswith("a ")
    result = json.loads((tmp_path / "bench-backbones.json").read_text())
    assert [row["race"] for row in result["rows"]] == ["a"]
    assert result["machine"]["cores"] >= 1
    assert {"versions", "commit", "threads", "written", "rounds"} <= result.keys()


def test_both_encoders_of_a_race_give_the_same_vectors_and_learn() -> None:
    torch.manual_seed(0)
    pair, pictures = cvt_pair(CPU, TINY), torch.randn(2, 3, 48, 48)
    forward = pair.forward(pictures)
    ours, theirs = forward.ours(), forward.theirs()
    states = ours.tokens.transpose(1, 2).unflatten(2, ours.grid)  # ours are normed
    normed = pair.ours.norm(theirs.last_hidden_state.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(states, normed, atol=1e-5, rtol=1e-5)
    before = [value.clone() for value in (pair.ours.stages[0].conv.weight, next(pair.theirs.parameters()))]
    step = pair.step(pictures)
    assert step.macs == 3 * forward.macs
    step.ours()
    step.theirs()
    for now, old in zip((pair.ours.stages[0].conv.weight, next(pair.theirs.parameters())), before, strict=True):
        assert not torch.equal(now, old)
