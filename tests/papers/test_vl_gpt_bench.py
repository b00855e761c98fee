"""Both ways of a training step compute the same, ours with everything on that makes it fast; and what a step costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.papers import vl_gpt_bench, vl_gpt_bench_profile
from tessera.papers.vl_gpt import MINI, Schedule
from tessera.papers.vl_gpt_bench import race
from tessera.papers.vl_gpt_steps import Bench, Size, padded, sequences
from tessera.study import bench as benches
from tessera.study import bench_ceiling
from tessera.study.bench import measured, read

CPU = torch.device("cpu")
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 2048,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3,
}  # fmt: skip


def tiny(**fields: Any) -> Bench:
    schedule = Schedule(steps=100, batch=1, lr=3e-4)
    recipe = replace(MINI, tokenizer={"num_embeddings": 4}, row_length=128, pretrain=schedule, instruct=schedule)
    return Bench(Size(name="tiny", recipe=recipe, rows=1, text=TEXT), CPU, **{"precision": "fp32", **fields})


@pytest.mark.parametrize(("stage", "checkpointing"), [("pretrain", False), ("instruct", True)])
def test_losses_of_a_hundred_steps_equal_those_of_the_plain_way(stage: str, checkpointing: bool) -> None:
    # By AdamW: Muon makes directions that hold rounding alone as large as all others, on either way.
    bench = tiny(stage=stage, checkpointing=checkpointing)
    ours, plain = bench.ours(bench.model()), bench.plain(bench.model())
    losses = [(ours(), plain()) for _ in range(100)]
    for mine, theirs in losses:
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert losses[-1][0] < losses[0][0] - 1


def test_padded_rows_hold_the_sequences_of_the_packed_ones() -> None:
    bench = tiny()
    rows = padded(bench.batch)
    lengths = [len(one) for one in sequences(bench.batch)]
    assert rows["attention_mask"].sum(1).tolist() == lengths
    assert sum(lengths) == bench.tokens
    assert rows["input_ids"].shape == (len(lengths), max(lengths))
    first = bench.batch.input_ids[0, : lengths[0]]
    assert torch.equal(rows["input_ids"][0, : lengths[0]], first)
    assert int(rows["visual_target"].sum()) == int(bench.batch.visual_target.sum())


def test_a_race_gives_its_speed_the_share_of_the_ceiling_and_the_gain_that_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = tiny()
    dense = 2 * (4 * 32 * 32 + 3 * 32 * 64) * bench.tokens
    learned = int((bench.batch.labels[:, 1:] != -100).sum())
    squares = sum(len(one) ** 2 for one in sequences(bench.batch))
    assert bench.macs == 3 * (dense + learned * 32 * 2048 + 2 * 32 * squares)
    monkeypatch.setattr(benches, "WARM", 0)
    row, speed, share = measured(race(bench), CPU, rounds=1)
    assert row["counted"] == bench.plain_macs / bench.macs > 1
    assert speed["value"] == pytest.approx(1e3 * bench.tokens / row["ours_ms"])
    assert (share["value"], share["floor"], share["verdict"]) == (row["of_ceiling"], None, "")


@pytest.mark.skipif(not vl_gpt_bench.STATUS.is_file(), reason="the peak of a process is read from Linux")
def test_the_memory_that_must_be_held_is_that_of_weights_gradients_moments_and_the_inputs_of_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = tiny()
    monkeypatch.setattr(vl_gpt_bench, "SIZES", {"mini": bench.size})
    found = vl_gpt_bench.peak("tiny", "cpu")
    model = bench.model()
    parts = (model.language_model, model.regression_head, model.visual_mask, model.visual_projector)
    assert found["parameters"] == sum(one.numel() for part in parts for one in part.parameters())
    assert found["held"] == 16 * found["parameters"] + 4 * 2 * 128 * 32


@pytest.mark.skipif(not vl_gpt_bench.STATUS.is_file(), reason="the peak of a process is read from Linux")
def test_a_peak_is_what_was_taken_since_it_started_anew_and_stays_when_that_is_given_back() -> None:
    before = vl_gpt_bench._start_peak(CPU)
    taken = torch.ones(2**24)  # 64 MiB, every page of it
    del taken
    assert 0.9 * 2**26 < vl_gpt_bench._peak(CPU) - before < 2 * 2**26


def test_where_no_peak_can_be_read_none_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vl_gpt_bench, "STATUS", tmp_path / "none")
    row = read(vl_gpt_bench.memory(tiny().size, CPU), CPU)
    assert (row["value"], row["floor"], row["verdict"]) == (None, 1.3, "not measured here")


def test_the_ceiling_is_measured_at_the_shapes_of_the_trained_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = tiny()
    monkeypatch.setattr(vl_gpt_bench, "SIZES", {"mini": bench.size})
    monkeypatch.setattr(bench_ceiling, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(bench_ceiling, "TRAFFIC", {"here": 4096})
    names = [read(one, CPU)["measure"] for one in vl_gpt_bench.ceiling(CPU)]
    assert f"products of {bench.tokens} x 32 x 64" in names
    assert names[-2:] == ["copy here", "one small operation"]


def test_the_profile_of_a_step_names_its_largest_operators_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vl_gpt_bench_profile, "sizes", lambda device: [tiny().size])
    rows = [read(one, CPU) for one in vl_gpt_bench_profile.measures(CPU)]
    assert [row["measure"] for row in rows] == [f"tiny, pretrain: a step, {way}" for way in vl_gpt_bench_profile.WAYS]
    for row in rows:
        times = [one["ms"] for one in row["operators"]]
        assert len(times) == 10 and times == sorted(times, reverse=True)
        assert sum(times) <= row["value"]
        assert sum(one["share"] for one in row["operators"]) == pytest.approx(sum(times) / row["value"])
        assert all(one["calls"] >= 0.5 for one in row["operators"])
        assert any(one["name"] in ("aten::mm", "aten::addmm", "aten::linear") for one in row["operators"])
