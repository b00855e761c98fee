"""A LLaVA file of conversations about grey pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def conversations(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A LLaVA file of these rows, and the pictures a.png to p.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate("abcdefghijklmnop"):
        Image.fromarray(np.full((24, 24, 3), 15 * number, np.uint8)).save(folder / f"{name}.png")
    (folder / "llava.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "llava.json"


def row(name: str, answer: str, asked: str = "<image>\nWhat is it?", who: str = "gpt") -> dict[str, Any]:
    turns = [{"from": "human", "value": asked}, {"from": who, "value": answer}]
    return {"id": name, "image": f"{name}.png", "conversations": turns}
