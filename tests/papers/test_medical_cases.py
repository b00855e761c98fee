"""The medical cases as a paper: the figures that follow from counts, and what it says of itself."""

from __future__ import annotations

import json

import pytest

from tessera.cli import main
from tessera.errors import UserError
from tessera.papers.figures import beside
from tessera.papers.registry import TrainOptions, get

SLUG = "medical-cases"


@pytest.mark.light("medical-cases", "size")
def test_the_size_command_gives_the_published_intervals_from_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", SLUG, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    intervals = {name: (round(one["low"], 1), round(one["high"], 1)) for name, one in found.items() if "low" in one}
    assert intervals == {
        "text and image, 934 cases": (57.8, 64.2),
        "long cases, text alone": (68.3, 88.4),
        "long cases, text and image": (45.5, 69.8),
        "human readers": (48.6, 50.3),
    }
    assert found["guessing"]["per cent"] == 20


@pytest.mark.light("medical-cases", "size")
def test_every_published_figure_follows() -> None:
    rows = beside(get(SLUG).figures(), get(SLUG).size)
    assert len(rows) == 13
    assert [row.figure.name for row in rows if not row.follows] == []


def test_the_show_command_says_what_differs_and_what_is_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", SLUG]) == 0
    page = capsys.readouterr().out
    assert "options are shuffled for each case" in page
    assert "weights does not apply" in page
    assert "the second language model that reads the choice out" in page


def test_there_is_nothing_to_train(tmp_path) -> None:
    with pytest.raises(UserError, match="medical-cases has nothing to train"):
        get(SLUG).train(TrainOptions(tmp_path))
