"""The catalogue is complete and light; unknown and unbuilt works are refused with a sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.errors import UserError
from tessera.papers import registry
from tessera.papers.registry import FAMILIES, LIGHTS, entry, get, paper, papers


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
        assert set(one.lights) == set(LIGHTS)


def test_a_work_without_a_file_is_dark() -> None:
    assert all(set(one.lights.values()) == {"dark"} for one in papers() if not one.built)


def test_every_paper_file_belongs_to_the_catalogue() -> None:
    shared = {"__init__", "registry", "settings"}
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
    class Prior:
        pass

    assert isinstance(get(slug), Prior)


def test_listing_the_papers_loads_no_heavy_library() -> None:
    code = (
        "import sys; from tessera.papers import papers; [one.as_json() for one in papers()];"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
