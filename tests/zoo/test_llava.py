"""`tessera zoo build llava`: both stages, and a part that transformers and this library read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import tessera
from tessera.data.worlds.emoji_font import find_font
from tessera.errors import UserError
from tessera.zoo import build, llava


def _font() -> bool:
    try:
        return bool(find_font(None))
    except UserError:
        return False


pytestmark = pytest.mark.skipif(not _font(), reason="no emoji font")


def built_small(out: Path, **options: bool) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava, "ROWS", 1)
        patch.setattr(llava, "ROW_LENGTH", 256)
        patch.setattr(llava, "RECIPE", replace(llava.RECIPE, scores=partial(llava.scores, pictures=2)))
        return build.build("llava", out, steps=2, **options)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "llava"
    built_small(out)
    return out


def test_the_seconds_of_a_resumed_part_are_those_of_all_its_steps(part: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava"
    shutil.copytree(part / "run", out / "run")
    file = out / "run" / "timings.jsonl"
    slow = [json.loads(line) | {"seconds": 50.0} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in slow))
    assert built_small(out, resume=True)["seconds"] == 100


def test_the_connector_learns_first_and_then_with_the_language_model(part: Path) -> None:
    lines = [json.loads(line) for line in (part / "run" / "timings.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["connect", "instruct"]
    built, start = tessera.load(part / "llava"), llava.new_model()
    same = {
        name: torch.equal(value, start.state_dict()[name].bfloat16().float())
        for name, value in built.model.state_dict().items()
    }
    assert all(equal for name, equal in same.items() if name.startswith("vision."))
    assert not same["connector.mlp.fc1.weight"] and not same["language_model.lm_head.weight"]


def test_the_part_is_a_folder_of_transformers_and_its_card_has_the_held_out_table(part: Path) -> None:
    LlavaForConditionalGeneration.from_pretrained(part / "llava")
    built = tessera.load(part / "llava")
    assert built.needs_picture and built.model.config.vision_feature_layer == [1, -1]
    card = json.loads((part / "llava" / "card.json").read_text())
    wanted = {"questions, all types", "caption, 1-2 objects: every colour and shape", "popular: accuracy"}
    assert wanted <= card["scores"].keys() and card["steps"] == 2
    assert "| questions, all types |" in (part / "llava" / "README.md").read_text()
    assert sum(file.stat().st_size for file in (part / "llava").iterdir()) < 25e6
