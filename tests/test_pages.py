"""A paper's page says what its file and results/ say, and the committed pages are those."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.app.study_plot import study_plot
from tessera.cli import main
from tessera.errors import DataError
from tessera.papers.figures import beside
from tessera.papers.registry import get, papers
from tessera.study import table
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import run
from tools import pages

SVG = "{http://www.w3.org/2000/svg}"


def _study() -> Study:
    def trained(mean: float) -> Any:
        def train(seed: int) -> Outcome:
            items = mean + np.random.default_rng(seed).normal(0, 0.02, 50)
            return Outcome(metrics={"loss": 1 - mean}, items={"score": items.tolist()}, steps=10, samples=80)

        return train

    claims = [
        Claim(name="better", metric="score", arm="new <x>", against="old", expect="higher", published="+3 | points"),
        Claim(name="above chance", metric="score", arm="new <x>", against=0.25, expect="higher", published="25 %"),
        Claim(name="lower loss", metric="loss", arm="new <x>", against="old", expect="lower", published="1.2"),
    ]  # fmt: skip
    arms = [Arm(name="new <x>", run=trained(0.8)), Arm(name="old", run=trained(0.5))]
    return Study(slug="vl-gpt", title="new against old", arms=arms, claims=claims, notes=["what it does not show"])


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    return run(_study(), out=tmp_path / "results/vl-gpt.json", work=tmp_path / "work", command="tessera reproduce x")


def test_a_plot_has_a_panel_for_each_claimed_metric_and_a_dot_for_each_seed(result: dict[str, Any]) -> None:
    root = ElementTree.fromstring(study_plot(result))
    marks = [element.get("class") for element in root.iter()]
    assert [element.text for element in root.iter(f"{SVG}text") if element.get("class") == "title"] == ["score", "loss"]
    assert marks.count("seed") == 2 * 2 * 3
    assert marks.count("mean") == marks.count("range") == 2 * 2
    assert marks.count("level") == 1
    means = [float(one.get("cx", "")) for one in root.iter(f"{SVG}circle") if one.get("class") == "mean"]
    assert means[0] > means[1], "the better score stands to the right"
    assert means[2] < means[3], "the lower loss to the left"


def test_a_study_that_claims_nothing_shows_all_that_its_arms_share(result: dict[str, Any]) -> None:
    del result["arms"]["old"]["metrics"]["loss"]
    plain = {**result, "claims": []}
    root = ElementTree.fromstring(study_plot(plain))
    assert [element.text for element in root.iter(f"{SVG}text") if element.get("class") == "title"] == ["score"]
    page, shown = "\n".join(pages.measured("vl-gpt", plain)), table.text(plain)
    assert "| old |  | 0.5" in page and "verdict" not in page
    assert "vl-gpt: new against old" in shown and "verdict" not in shown


def test_equal_scores_are_drawn(result: dict[str, Any]) -> None:
    for arm in result["arms"].values():
        arm["metrics"]["score"] = {"value": 0.5, "low": 0.5, "high": 0.5, "by_seed": [0.5, 0.5, 0.5]}
    assert "nan" not in study_plot(result)


def test_show_prints_a_study_of_one_s_own_with_its_intervals_and_lights_its_claim(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert result["verdict"] == "holds"
    assert main(["show", "vl-gpt", "--results", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out
    assert "claim on" in shown
    assert "new against old" in shown
    assert "0.3 [" in shown
    assert main(["show", "vl-gpt", "--results", str(tmp_path / "results"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["lights"]["claim"], told["result"]) == ("on", result)


def test_a_page_tells_parts_figures_claims_and_what_they_were_made_on(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    pages.count("vl-gpt")
    made = pages.page("vl-gpt")
    assert set(made) == {"vl-gpt.md", "vl-gpt.svg"}
    text = made["vl-gpt.md"]
    assert "| VL-GPT with its image tokenizer | 7.5 B | 7,551,546,880 | ✓ |" in text
    assert "## Stages" in text
    assert "| better: new <x> − old, score | 0.3 [" in text
    assert "+3 \\| points |" in text
    assert "`tessera reproduce x`" in text
    assert "- what it does not show" in text
    assert text.count("\n# ") == 0 and text.startswith("# VL-GPT")


def test_figures_that_were_counted_for_another_list_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    pages.count("vl-gpt")
    file = tmp_path / "figures/vl-gpt.json"
    held = json.loads(file.read_text())
    held["figures"][0]["published"] = "8 B"
    file.write_text(json.dumps(held))
    with pytest.raises(DataError, match="python -m tools.pages vl-gpt"):
        pages.page("vl-gpt")


def test_what_does_not_follow_is_listed_with_its_reason() -> None:
    row = {"name": "size", "published": "5M", "ours": 4_000_000, "follows": False, "note": "the table has a slip"}
    assert "- size: 5M, ours 4,000,000: the table has a slip" in list(pages.figures([row]))[-1]


BUILT = [one.slug for one in papers() if one.built]


@pytest.mark.parametrize("slug", BUILT)
def test_committed_pages_are_what_papers_and_results_say(slug: str) -> None:
    for name, text in pages.page(slug).items():
        assert (pages.PAGES / name).read_text(encoding="utf-8") == text, f"{name}: run `make docs`"


@pytest.mark.parametrize("slug", BUILT)
def test_a_paper_says_why_a_published_figure_does_not_follow_and_of_no_other(slug: str) -> None:
    for row in pages.counted(slug, get(slug)):
        assert row["follows"] is not bool(row["note"]), (row["name"], row["published"], row["ours"])


@pytest.mark.slow
@pytest.mark.parametrize("slug", BUILT)
def test_recorded_figures_are_those_that_are_counted_today(slug: str) -> None:
    paper = get(slug)
    counted = [row.as_json() for row in beside(paper.figures(), paper.size)]
    assert json.loads(json.dumps(counted)) == pages.counted(slug, paper)


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in pages.PAGES.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
