"""The catalogue is complete and light; unknown and unbuilt works are refused with a sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tessera.errors import UserError
from tessera.papers import registry
from tessera.papers.registry import CAPABILITIES, FAMILIES, LIGHTS, Paper, TrainOptions, entry, get, paper, papers
from tessera.study.design import Arm, Claim, Outcome, Study


def test_the_catalogue_holds_57_distinct_works_with_all_they_need() -> None:
    assert len({one.slug for one in papers()}) == len({one.title for one in papers()}) == len(papers()) == 57
    assert len({one.arxiv for one in papers()}) == 57
    for one in papers():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.slug)
        assert re.fullmatch(r"\d{4}\.\d{5}", one.arxiv or "")
        assert one.families
        assert set(one.families) <= set(FAMILIES)
        assert 2019 <= one.year <= 2025
        assert one.summary
        assert one.capabilities
        assert set(one.capabilities) <= set(CAPABILITIES)
        assert len(one.keywords) >= 5
        assert set(one.not_applicable) <= set(LIGHTS)
        assert set(one.lights) == set(LIGHTS)


def test_a_work_without_a_file_is_dark() -> None:
    assert all(set(one.lights.values()) == {"dark"} for one in papers() if not one.built)


def test_every_paper_file_belongs_to_the_catalogue() -> None:
    shared = {
        "__init__", "asking", "classifying", "figures", "lights", "lvlm_training", "pictures", "registry", "restoring",
        "search", "settings",
    }  # fmt: skip
    files = {file.stem for file in Path(registry.__file__).parent.glob("*.py")} - shared
    built = {one.module for one in papers() if one.built}
    assert built <= files
    for file in files - built:
        assert any(file.startswith(f"{module}_") for module in built), f"{file}.py is no paper and helps none"


def test_unknown_names_the_nearest_and_unbuilt_says_so() -> None:
    with pytest.raises(UserError, match="no paper 'vlgpt'; did you mean 'vl-gpt'"):
        entry("vlgpt")
    unbuilt = next(one.slug for one in papers() if not one.built)
    with pytest.raises(UserError, match="not built yet"):
        get(unbuilt)
    with pytest.raises(UserError, match="no paper"):
        paper("nonsense")


def test_a_registered_class_is_made_by_get(monkeypatch: pytest.MonkeyPatch) -> None:
    slug = "prior"
    monkeypatch.setattr(registry, "_BUILT", {})
    monkeypatch.setattr(registry, "import_module", lambda name: None)
    monkeypatch.setitem(entry(slug).__dict__, "built", True)

    @paper(slug)
    class Prior(Paper):
        pass

    assert isinstance(get(slug), Prior)
    assert get(slug).slug == slug


def test_a_paper_that_lacks_something_says_so(tmp_path: Path) -> None:
    class Survey(Paper):
        slug = "a-survey"

    survey = Survey()
    assert not survey.describe() and not survey.figures() and not survey.studies
    for ask in (survey.size, lambda: survey.train(TrainOptions(tmp_path)), lambda: survey.reproduce(3, tmp_path / "r")):
        with pytest.raises(UserError, match="a-survey has no"):
            ask()


def test_reproduce_runs_the_study_and_writes_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Tiny(Paper):
        slug = "tiny"

        def study(self) -> Study:
            arms = [Arm(name=name, run=partial(self.outcome, gain)) for name, gain in (("new", 1.0), ("old", 0.0))]
            claim = Claim(
                name="better", metric="score", arm="new", against="old", expect="higher", published="+1"
            )  # fmt: skip
            return Study(slug=self.slug, title="a test", arms=arms, claims=[claim])

        @staticmethod
        def outcome(gain: float, seed: int) -> Outcome:
            return Outcome(metrics={"score": gain + 0.1 * seed}, steps=1, samples=1)

    result = Tiny().reproduce(3, tmp_path / "tiny.json")
    assert result["verdict"] == "holds"
    assert json.loads((tmp_path / "tiny.json").read_text()) == result


def test_listing_the_papers_loads_no_heavy_library() -> None:
    code = (
        "import sys; from tessera.papers import papers; [one.as_json() for one in papers()];"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("data", "workers", "gpu", "threads"),
    [
        ((), None, True, 0),
        (("scenes", "emoji"), None, True, 0),
        (("scenes", "my/shards"), None, True, 1),
        (("scenes", "my/shards"), None, False, 0),
        (("my/shards",), 0, True, 0),
        ((), 3, False, 3),
    ],
)
def test_a_thread_reads_files_beside_a_gpu_and_none_else_unless_another_number_is_asked_for(
    data: tuple[str, ...], workers: int | None, gpu: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert TrainOptions(out=Path(), data=data, workers=workers).reading_threads == threads
