"""The report of a training: what its score lines say, and which worlds get an album."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as PIL

from tessera.data.sample import Sample, pair
from tessera.errors import BadSample, UserError
from tessera.evaluate.emoji_suite import CHANCE, RECALL, EmojiResult
from tessera.evaluate.intervals import Estimate, exact_binomial
from tessera.evaluate.scenes_suite import FRECHET, FRECHET_FLOOR
from tessera.papers.vl_gpt import worlds
from tessera.papers.vl_gpt_report import _emoji_album, _own_albums, _scores


def test_a_score_stands_beside_its_floor_and_what_guessing_gives() -> None:
    lines = {
        one.name: one
        for one in _scores(
            {
                "questions, count": exact_binomial(7, 10),
                "questions, count: majority answer": exact_binomial(4, 10),
                "drawing, 1 object: all right": exact_binomial(9, 10),
                FRECHET: Estimate(30.0, 20.0, 40.0, 100),
                FRECHET_FLOOR: Estimate(10.0, 8.0, 12.0, 100),
                RECALL: exact_binomial(3, 10),
                CHANCE: Estimate(0.1, 0.1, 0.1, 100),
            }
        )
    }
    assert list(lines) == ["questions, count", "drawing, 1 object: all right", FRECHET, FRECHET_FLOOR, RECALL]
    assert (lines["questions, count"].chance, lines["questions, count"].floor) == (0.4, pytest.approx(0.55))
    assert (lines["drawing, 1 object: all right"].floor, lines["drawing, 1 object: all right"].headline) == (0.85, True)
    assert not lines[FRECHET].percent and not lines[FRECHET].higher_is_better and "mini/clip" in lines[FRECHET].about
    assert (lines[RECALL].chance, lines[RECALL].floor, lines[RECALL].percent) == (0.1, None, True)


def test_emoji_get_an_album_and_where_there_is_no_font_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = PIL.new("RGB", (64, 64), "yellow")
    found = EmojiResult(
        captions=[{"picture": face, "truth": "sun", "said": "a star"}], drawings=[{"prompt": "sun", "picture": face}]
    )
    (album,) = _emoji_album(found, tmp_path)
    assert (album.captions[0].truth, album.captions[0].said, album.drawings[0].prompt) == ("sun", "a star", "sun")
    monkeypatch.delenv("TESSERA_EMOJI_FONT", raising=False)
    monkeypatch.setattr("tessera.data.worlds.emoji_font.FONTS", ())
    monkeypatch.setattr("sys.platform", "linux")
    (album,) = _emoji_album(None, tmp_path)
    assert not album.captions and not album.drawings
    assert "apt-get install fonts-noto-color-emoji" in album.about


class Mine(list[Sample]):
    """A world of the user's own whose second sample cannot be read."""

    name, tasks = "data/mine", ("pairs",)

    def source(self, task: str, split: str) -> Mine:
        return self

    def __getitem__(self, index: Any) -> Any:
        if index == 1:
            raise BadSample("broken")
        return super().__getitem__(index)


def test_one_s_own_held_out_pictures_get_an_album_without_those_that_cannot_be_read(tmp_path: Path) -> None:
    def caption(images: list[Any]) -> list[str]:
        return [f"{image.size[0]} wide" for image in images]

    def draw(texts: list[str]) -> list[PIL.Image]:
        return [PIL.new("RGB", (64, 64)) for _ in texts]

    assistant: Any = SimpleNamespace(caption=caption, draw=draw, draw_prompt=str)
    world: Any = Mine(pair(PIL.new("RGB", (20 + index, 20)), f"number {index}") for index in range(3))
    (album,) = _own_albums(assistant, [world], tmp_path)
    assert album.title == "mine"
    assert [(one.truth, one.said) for one in album.captions] == [("number 0", "20 wide"), ("number 2", "22 wide")]
    assert [one.prompt for one in album.drawings] == ["number 0", "number 2"]


def test_without_a_font_the_scenes_are_trained_on_alone_and_emoji_that_are_asked_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TESSERA_EMOJI_FONT", raising=False)
    monkeypatch.setattr("tessera.data.worlds.emoji_font.FONTS", ())
    assert [(world.name, share) for world, share in worlds([])] == [("scenes", 1.0)]
    with pytest.raises(UserError, match="no colour emoji font"):
        worlds(["scenes", "emoji"])
    monkeypatch.setenv("TESSERA_EMOJI_FONT", "/no/such.ttf")
    with pytest.raises(UserError, match=r"/no/such\.ttf"):
        worlds([])
