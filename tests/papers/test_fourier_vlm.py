"""Fourier-VLM as a paper: every counted figure of its budgets."""

from __future__ import annotations

import json

import pytest

from tessera.cli import main
from tessera.errors import UserError
from tessera.models.lvlm import LVLMConfig
from tessera.papers.figures import beside
from tessera.papers.fourier_vlm import SIDES, llava
from tessera.papers.registry import get
from tessera.study.counting import prefill

SLUG = "fourier-vlm"


@pytest.mark.light("fourier-vlm", "size")
def test_the_size_command_counts_144_tokens_of_llava(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", SLUG, "--variant", llava(144), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == {"total": 7_063_427_072, "added": 0}
    assert (found["tokens"], found["ratio"]) == (144, 4)
    assert found["prefill FLOPs"]["50 words"] == pytest.approx(2.58e12, rel=0.002)
    assert found["multiply-adds of the DCT"] == (12 * 24 * 24 + 12 * 12 * 24) * 1024


@pytest.mark.light("fourier-vlm", "size")
def test_every_published_figure_follows() -> None:
    paper = get(SLUG)
    rows = beside(paper.figures(), paper.size)
    assert len(rows) == 4 + 2 * 8 + 3 + 3 * 6
    assert all(row.follows for row in rows)


@pytest.mark.light("fourier-vlm", "exact")
def test_the_compressor_costs_well_under_a_hundredth_of_a_layer_of_the_language_model() -> None:
    spent = get(SLUG).size(llava(144))["multiply-adds of the DCT"]
    assert spent < 0.01 * prefill(LVLMConfig().text_config, 144 + 50) / 2 / 32


@pytest.mark.light("fourier-vlm", "size")
def test_qwen_has_as_many_placeholders_as_tokens_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", SLUG, "--variant", "qwen2-vl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left of a grid"] == {"36 x 24": "24 x 16", "3 x 7": "2 x 4", "1 x 1": "1 x 1"}
    assert found["placeholders"] == {"36 x 24": 384, "3 x 7": 8, "1 x 1": 1}


def test_the_kept_sides_are_the_published_ones() -> None:
    assert SIDES == {256: 16, 144: 12, 64: 8, 36: 6, 25: 5, 16: 4, 9: 3, 4: 2}


def test_an_unknown_variant_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no variant 'llava-1.5-7b-143'; did you mean 'llava-1.5-7b-144'"):
        get(SLUG).size("llava-1.5-7b-143")


def test_the_show_command_says_what_is_known_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", SLUG]) == 0
    page = capsys.readouterr().out
    assert "83.8 % fewer FLOPs" in page
    assert "of this library's making" in page
