"""Races of generation, data and start, at tiny size: both sides do the same work."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tessera.data.worlds.export import write_shards
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import TesseraError
from tessera.papers import vl_gpt_bench_data, vl_gpt_bench_start
from tessera.papers.vl_gpt_bench_data import packed, padded, reading
from tessera.papers.vl_gpt_bench_generate import Pictures, Words, products, untrained
from tessera.papers.vl_gpt_steps import SIZES
from tessera.study.bench import BENCHES, Measure, Race, read, verdict
from tessera.zoo.parts import load_tokenizer
from tests.models.vlgpt_tiny import text_config

CPU = torch.device("cpu")
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(ScenesWorld().source("pairs"), folder, count=40, size=40)
    return str(folder / "00000.tar")


def rows(race: Race, **row: float) -> list[Measure]:
    return list(race.follows({"race": race.name, "dtype": "float32", "ours_ms": 500.0, "theirs_ms": 1000.0, **row}))


@pytest.mark.parametrize(("batch", "new"), [(1, 6), (3, 6), (1, 1)])
def test_both_sides_say_the_same_words(batch: int, new: int) -> None:
    race = Words(text_config(), CPU).race(batch, 9, new)
    said = race.ours()
    assert said == race.theirs()
    assert [len(words) for words in said] == [new] * batch
    (measure,) = rows(race)
    assert measure.take() == (batch * new * 2 if new > 1 else 0.5)


@pytest.mark.parametrize("bits", [16, 32])
def test_both_sides_multiply_alike(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(SIZES["mini"], text=TINY)
    monkeypatch.setitem(SIZES, "100m", size)
    race = products(3, bits, CPU)
    assert race.macs == 2 * 3 * 128 * 32
    assert [one.shape for one in race.ours()] == [one.shape for one in race.theirs()] == [(3, 128)] * 2


def test_two_that_say_different_words_do_not_race() -> None:
    words = Words(text_config(), CPU)
    words.language = Words(text_config(hidden_size=64), CPU).language
    with pytest.raises(TesseraError, match="do not say the same words"):
        words.race(1, 9, 6)


def test_both_sides_draw_the_same_picture() -> None:
    pictures = Pictures(untrained(CPU))
    embeddings, pixels, drawing = pictures.embeddings(), pictures.pixels(), pictures.drawing()
    torch.testing.assert_close(embeddings.ours(), embeddings.theirs(), atol=1e-4, rtol=1e-4)
    for race in (pixels, drawing):
        ours, theirs = race.ours(), race.theirs()
        assert ours.shape == (64, 64, 3)
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    (seconds,) = rows(drawing)
    assert read(seconds, CPU)["verdict"] == "reaches the floor"  # half a second, where one is the floor and 0.3 the aim


def test_both_sides_read_as_many_samples(tar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vl_gpt_bench_data, "SAMPLES", 30)
    tokenizer = load_tokenizer("mini/lm")
    batches = packed(tar, tokenizer, 30)
    count = sum(len(row) for batch in batches for row in batch.sample_ids)
    assert count >= 30
    assert sum(len(batch.pixel_values) for batch in batches) == count
    theirs = padded(tar, tokenizer, count)
    assert sum(len(batch["pixel_values"]) for batch in theirs) == count
    assert [measure.take() for measure in rows(reading(tar))] == [2 * count, count]


def test_pictures_enter_both_sides_alike(tar: str) -> None:
    tokenizer = load_tokenizer("mini/lm")
    ours = torch.cat([batch.pixel_values for batch in packed(tar, tokenizer, 40)])
    theirs = torch.cat([batch["pixel_values"] for batch in padded(tar, tokenizer, 40)])
    assert all(((theirs - picture).abs().amax((1, 2, 3)) < 1e-5).any() for picture in ours)


def test_a_step_with_its_data_and_one_without_both_learn(tar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vl_gpt_bench_data, "STEPS", 2)
    monkeypatch.setattr(vl_gpt_bench_data, "HELD", 1)
    race = vl_gpt_bench_data.StageB(tar, CPU).race()
    race.ours()
    race.theirs()
    (share,) = rows(race, speed=0.97)
    assert share.take() == pytest.approx(0.03)
    assert read(share, CPU)["verdict"] == "reaches the floor"
    assert read(Measure(name="a", take=lambda: 0.06, unit="", floor=0.05, aim=0.01), CPU)["verdict"].startswith("short")


def test_a_start_is_a_process_of_its_own_that_must_end_well() -> None:
    race = vl_gpt_bench_start.race("help", ("--help",), "Python alone", "pass", 0.5, 0.2)
    assert b"usage: tessera" in race.ours().stdout
    assert race.theirs().args[0] == sys.executable
    assert rows(race)[0].floor == 0.5
    with pytest.raises(Exception, match="returned non-zero"):
        vl_gpt_bench_start.race("wrong", ("nothing",), "", "pass").ours()


def test_a_saved_model_says_something_in_a_process_of_its_own() -> None:
    for race in vl_gpt_bench_start.races(CPU):
        if "caption" in race.name:
            assert race.ours().returncode == 0


def test_every_bench_can_be_opened_and_one_without_demands_has_no_verdict() -> None:
    assert {"generate", "data", "start"} <= BENCHES.keys()
    race = vl_gpt_bench_start.race("a", ("--help",), "b", "pass")
    assert verdict(0.1, race) == ""
    assert not list(vl_gpt_bench_start.races(torch.device("meta")))  # a start has no device
