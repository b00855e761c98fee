"""Races of fewer tokens: what is counted, and that both sides are the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tessera.cli import main
from tessera.reduce import REDUCERS as LIBRARY
from tessera.study import bench, bench_reduce
from tessera.study.bench import run
from tessera.study.bench_reduce import HALF, REDUCERS, layer_race, open_layer, vit_race
from tessera.vision.registry import create

CPU = torch.device("cpu")
TINY = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1
)


@pytest.fixture
def plain():
    return create("vit-mini", hidden_size=24, num_hidden_layers=4, num_attention_heads=2).eval()


@pytest.mark.parametrize("name", REDUCERS)
def test_a_reducer_s_race_counts_fewer_multiply_adds_and_sees_the_same_pictures(name: str, plain) -> None:
    race = vit_race(name, plain, torch.randn(2, 3, 32, 32))
    assert race.counted > 1.2
    ours, theirs = race.ours(), race.theirs()
    assert ours.shape == theirs.shape == (2, 24) and not torch.equal(ours, theirs)
    assert not ours.requires_grad and all(weight.grad is None for weight in plain.parameters())


@pytest.mark.parametrize("name", REDUCERS)
def test_in_training_both_sides_of_a_reducer_s_race_have_gradients(name: str, plain) -> None:
    used = vit_race(name, plain, torch.randn(2, 3, 32, 32))
    race = vit_race(name, plain, torch.randn(2, 3, 32, 32), train=True)
    assert (race.counted, race.macs) == (used.counted, 3 * used.macs)
    race.theirs()
    assert all(weight.grad is not None for name, weight in plain.named_parameters() if name.startswith("blocks"))
    assert race.ours().requires_grad and race.ours().shape == (2, 24)


def test_every_reducer_of_the_library_is_raced() -> None:
    assert list(REDUCERS) == list(LIBRARY)


@pytest.mark.parametrize("name", REDUCERS)
def test_a_layer_s_race_has_fewer_visual_tokens_and_as_much_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_reduce.LAYERS, "tiny", TINY)
    left, full = 8 if name in HALF else 4, open_layer("tiny", CPU)
    race = layer_race(name, "tiny", full, grid=(4, 4), left=left)
    assert race.ours().shape == (1, left + bench_reduce.TEXT, 64)
    assert race.theirs().shape == (1, 16 + bench_reduce.TEXT, 64)
    assert race.counted > 1.05 and race.least == 0.8 * race.counted
    assert not race.ours().requires_grad
    trained = layer_race(name, "tiny", full, grid=(4, 4), left=left, train=True)
    assert trained.ours().requires_grad and trained.theirs().requires_grad
    assert (trained.counted, trained.macs) == (race.counted, 3 * race.macs)


def test_what_chooses_by_importance_counts_the_map_that_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_reduce.LAYERS, "tiny", TINY)
    full = open_layer("tiny", CPU)
    random, prune = (layer_race(name, "tiny", full, grid=(4, 4), left=4).macs for name in ("random", "prune"))
    assert prune - random == 16 * 16 * 64


def test_each_reducer_is_raced_in_use_and_in_training_in_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_reduce, "open_layer", lambda *given: None)
    for kind in ("vit_race", "layer_race"):
        monkeypatch.setattr(bench_reduce, kind, lambda *given, kind=kind, **named: (kind, given, named))
    seen = {
        (kind, name, named.get("train", given[-1] is True))
        for kind, given, named in bench_reduce.races(CPU)
        for name in REDUCERS
        if name in given
    }
    assert len(seen) == 4 * len(REDUCERS)


def test_rounds_are_cut_where_one_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PRODUCT", {"cpu": 16})
    runs: list[int] = []
    race = bench.Race(
        name="a", peer="b", ours=lambda: runs.append(0), theirs=int, macs=1.0, dtype=torch.float32, least=0.9, aim=1.5,
        rounds=2,
    )  # fmt: skip
    run(race, CPU)
    assert len(runs) == bench.WARM + 2


def test_the_command_writes_the_gain_in_time_beside_that_in_multiply_adds(
    plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PRODUCT", {"cpu": 16})
    monkeypatch.setattr(bench, "devices", lambda: [CPU])
    race = vit_race("tome", plain, torch.randn(1, 3, 32, 32))
    monkeypatch.setattr("tessera.study.bench_reduce.races", lambda device: iter([race]))
    assert main(["bench", "reduce", "--out", str(tmp_path)]) == 0
    assert f"{race.counted:.2f} x" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "bench-reduce.json").read_text())["rows"]
    assert row["counted"] == race.counted
    assert row["speed"] > 0


def test_equal_work_counts_as_no_gain() -> None:
    race = bench.Race(
        name="a", peer="b", ours=int, theirs=int, macs=1.0, dtype=torch.float32, least=0.9, aim=1.5
    )  # fmt: skip
    assert run(race, CPU, rounds=1)["counted"] == 1.0
