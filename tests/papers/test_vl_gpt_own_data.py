"""VL-GPT on a user's own folder: trained by one process, used by others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 40),
    "black": (0, 0, 0),
}
GROUNDS = {"white": (255, 255, 255), "grey": (150, 150, 150)}
FIGURES = {
    "ball": lambda draw, box, colour: draw.ellipse(box, fill=colour),
    "box": lambda draw, box, colour: draw.rectangle(box, fill=colour),
    "tent": lambda draw, box, colour: draw.polygon(
        [(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], fill=colour
    ),
    "ring": lambda draw, box, colour: draw.ellipse(box, outline=colour, width=10),
    "bar": lambda draw, box, colour: draw.line(box, fill=colour, width=14),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty pictures of 120 x 90, each with a sentence beside it."""
    folder = tmp_path_factory.mktemp("own") / "album"
    folder.mkdir()
    number = 0
    for ground, back in GROUNDS.items():
        for colour, ink in COLOURS.items():
            for name, figure in FIGURES.items():
                image = Image.new("RGB", (120, 90), back)
                figure(ImageDraw.Draw(image), (35, 20, 85, 70), ink)
                image.save(folder / f"{number:02d}.{'jpg' if number % 2 else 'png'}")
                (folder / f"{number:02d}.txt").write_text(f"a {colour} {name} on {ground} paper\n")
                number += 1
    return folder


def tessera(*words: object) -> str:
    """What a fresh process prints."""
    command = [sys.executable, "-m", "tessera", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.light("vl-gpt", "use")
@pytest.mark.slow
def test_a_folder_of_fifty_pictures_trains_a_model_that_fresh_processes_use(drawn: Path, tmp_path: Path) -> None:
    assert len(list(drawn.glob("*.txt"))) == 50
    out = tmp_path / "run"
    said = tessera("train", "vl-gpt", "--data", drawn, "--out", out, "--steps", 6)
    assert f"model:  {out / 'model'}" in said
    assert "album" in (out / "report.json").read_text()
    pictures = [drawn / "00.png", drawn / "01.jpg"]
    captions = json.loads(tessera("caption", *pictures, "--model", out / "model", "--json"))
    assert [row["image"] for row in captions] == [str(path) for path in pictures]
    assert all(isinstance(row["caption"], str) for row in captions)
    answers = json.loads(
        tessera("ask", pictures[0], "what is on it?", "which colour?", "--model", out / "model", "--json")
    )
    assert [row["question"] for row in answers] == ["what is on it?", "which colour?"]
    drawings = json.loads(
        tessera("draw", "a red ball on white paper", "--model", out / "model", "--out", tmp_path / "d", "--json")
    )
    with Image.open(drawings[0]["image"]) as image:
        assert image.size == (64, 64)
