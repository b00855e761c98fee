"""Races: taking turns, medians, verdicts, the result file; and that both sides compute the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CvtConfig, LlamaConfig, LlamaForCausalLM

from tessera.cli import main
from tessera.study import bench, bench_ceiling
from tessera.study.bench import Measure, Race, measured, read, run, verdict
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
    monkeypatch.setattr(bench, "timed", lambda way, device: next(seconds[way]) if way in seconds else 16**3 * 1e-6)
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


def test_what_is_no_race_stands_beside_its_bounds_and_may_follow_from_a_race(small_product: None) -> None:
    def measure(value: float | None, floor: float | None = None, aim: float | None = None) -> Measure:
        return Measure(name="m", take=lambda: value, unit="s", floor=floor, aim=aim)

    asked = [(0.5, 0.4, 0.6), (0.3, 0.4, 0.6), (0.7, 0.4, 0.6), (1.2, 1.3, 1.1), (1.4, 1.3, 1.1), (1.0, 1.3, 1.1)]
    assert [read(measure(*one), CPU)["verdict"] for one in asked] == [
        "reaches the floor", "short of the floor", "reaches the aim",
        "reaches the floor", "short of the floor", "reaches the aim",
    ]  # fmt: skip
    assert (read(measure(3.0), CPU)["verdict"], read(measure(None, 1.0), CPU)["verdict"]) == ("", "not measured here")
    found = replace(race(), follows=lambda row: [measure(2 * row["ours_ms"])])
    row, followed = measured(found, CPU, rounds=1)
    assert (row["race"], followed["measure"], followed["value"]) == ("a", "m", 2 * row["ours_ms"])
    assert read(replace(measure(1.0), take=lambda: {"value": 2.0, "points": []}), CPU)["points"] == []


def test_a_race_may_bring_work_of_its_own_as_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(race(), ceiling=(lambda: None, 4e6))
    seconds = {one.ours: 2.0, one.theirs: 2.0}
    monkeypatch.setattr(bench, "timed", lambda way, device: seconds.get(way, 4.0))
    assert run(one, CPU, rounds=1)["of_ceiling"] == pytest.approx(0.5)  # 10^6 in 2 s of 10^6 a second


def test_the_ceiling_is_measured_at_the_shapes_of_a_model_and_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ceiling, "LEAST_SECONDS", 0.0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=99,
    )  # fmt: skip
    shapes = bench_ceiling.linear_shapes(config, 10, 4)
    weights = sum(k * n * number for (_, k, n), number in shapes.values())
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert weights == sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
    rows = [read(one, CPU) for one in bench_ceiling.rates((shape for shape, _ in shapes.values()), CPU)]
    assert len(rows) == 2 * len({shape for shape, _ in shapes.values()})
    assert all(row["value"] == max(row["kinds"].values()) > 0 for row in rows)
    way, macs = bench_ceiling.best_of_step(shapes.values(), torch.float32, CPU)
    way()
    assert macs == 3 * (10 * (weights - 32 * 99) + 4 * 32 * 99)
