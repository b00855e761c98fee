"""`tessera zoo build llava`: both stages, and a part that holds what it has learned beside others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import tessera
from tessera.data.conversation import ConversationBuilder
from tessera.data.sample import Sample
from tessera.data.sequence import SequenceBuilder
from tessera.data.tasks import chat
from tessera.data.worlds import open_world
from tessera.data.worlds.emoji_font import find_font
from tessera.errors import CheckpointError, DataError, UserError
from tessera.models.adapters import merge_adapters
from tessera.zoo import build, llava, upon
from tessera.zoo.parts import load_tokenizer
from tessera.zoo.sketches import PLACES
from tests.data.tiny import write_nlvr
from tests.vision_chat_tiny import noise


def _font() -> bool:
    try:
        return bool(find_font(None))
    except UserError:
        return False


pytestmark = pytest.mark.skipif(not _font(), reason="no emoji font")
made: list[Any] = []


def built_small(out: Path, **options: Any) -> dict[str, Any]:
    def kept(model: Any, folder: Path) -> None:
        llava.save(model, folder)
        made.append(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava, "ROWS", 1)
        patch.setattr(llava, "ROW_LENGTH", 320)
        patch.setattr(llava, "TOLD", 8)
        patch.setattr(llava, "PICTURES", 2)
        patch.setattr(llava, "scores", partial(llava.scores, pictures=2))
        patch.setattr(llava, "RECIPE", replace(llava.RECIPE, save=kept, scores=llava.scores))
        return build.build("llava", out, steps=2, **options)


@pytest.fixture(scope="module")
def nlvr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nlvr")
    for name in (llava.TRAIN, llava.TEST):
        write_nlvr(folder / name, 4)
    return folder


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory, nlvr: Path) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "llava"
    built_small(out, data=nlvr)
    return out


def test_the_seconds_of_a_resumed_part_are_those_of_all_its_steps(part: Path, nlvr: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava"
    shutil.copytree(part / "run", out / "run")
    file = out / "run" / "timings.jsonl"
    slow = [json.loads(line) | {"seconds": 50.0} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in slow))
    assert built_small(out, resume=True, data=nlvr)["seconds"] == 100


def test_dialogues_are_written_as_the_language_model_has_read_them() -> None:
    tokenizer = load_tokenizer(llava.LANGUAGE)
    ours, read = ConversationBuilder(tokenizer, 4, chat_template=llava.TEMPLATE), SequenceBuilder(tokenizer, 4)
    source = open_world("scenes").source("conversations")
    talk = [chat(source[index]) for index in range(4)]
    several = Sample((*talk[0].segments[:1], *talk[1].segments[:1], *talk[0].segments[1:], *talk[2].segments))
    for sample in (*talk, several):
        assert ours.build(sample).input_ids.tolist() == read.build(sample).input_ids.tolist()
        assert ours.build(sample).labels.tolist() == read.build(sample).labels.tolist()
        assert (
            ours.prompt(sample.segments[:2]).input_ids.tolist() == read.prompt(sample.segments[:2]).input_ids.tolist()
        )


def test_the_connector_learns_first_and_then_with_adapters_which_the_folder_holds_alone(part: Path) -> None:
    lines = [json.loads(line) for line in (part / "run" / "timings.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["connect", "instruct"]
    names = load_file(part / "llava" / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"connector", "language_model"}
    assert all(name.endswith((".down", ".up")) for name in names if name.startswith("language_model"))
    assert sum(file.stat().st_size for file in (part / "llava").iterdir()) < 2**21


def test_what_is_loaded_is_the_trained_model_with_its_adapters_merged(part: Path) -> None:
    built, trained = tessera.load(part / "llava"), made[0].float().cpu().eval()
    merge_adapters(trained)
    theirs = trained.state_dict()
    for name, value in built.model.state_dict().items():
        torch.testing.assert_close(value, theirs[name].to(value), atol=2e-2, rtol=2e-2)
    assert not torch.equal(theirs["language_model.lm_head.weight"], torch.zeros(1))
    plain = upon.assemble(llava.VISION, llava.LANGUAGE, llava.FIELDS).state_dict()
    same = {name: torch.equal(value, plain[name]) for name, value in built.model.state_dict().items()}
    assert all(equal for name, equal in same.items() if name.startswith("vision."))
    assert not same["language_model.model.layers.0.mlp.up_proj.weight"]


def test_what_is_saved_of_it_is_a_whole_folder_that_stands_alone(part: Path, tmp_path: Path) -> None:
    built = tessera.load(part / "llava")
    assert built.needs_picture and built.model.config.vision_feature_layer == [1, -1]
    assert built.model.num_image_tokens() == PLACES
    built.save(tmp_path / "whole")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    assert theirs.num_parameters() == built.model.num_parameters()
    shown = [noise(0, 64, 64), noise(1, 80, 64)]
    assert tessera.load(tmp_path / "whole").answer(shown, "what?") == built.answer(shown, "what?")


def test_its_card_has_the_held_out_table_with_nlvr(part: Path) -> None:
    card = json.loads((part / "llava" / "card.json").read_text())
    wanted = {
        "questions, all types", "caption, 1-2 objects: every colour and shape", "popular: accuracy",
        "NLVR statements", "NLVR statements, blank pictures", "NLVR statements: majority answer",
        "emoji: its own among the first 10 names",
    }  # fmt: skip
    assert wanted <= card["scores"].keys() and card["steps"] == 2 and "NLVR (CC BY 4.0)" in card["about"]
    assert "| NLVR statements |" in (part / "llava" / "README.md").read_text()


def test_a_part_upon_another_language_model_is_refused(part: Path, tmp_path: Path) -> None:
    shutil.copytree(part / "llava", tmp_path / "llava")
    file = tmp_path / "llava" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "hashes": {**config["hashes"], "language": "0"}}))
    with pytest.raises(CheckpointError, match="trained upon another mini/lm than is here; build it again"):
        tessera.load(tmp_path / "llava")
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as a model upon parts"):
        tessera.load(tmp_path / "llava")


def test_data_that_are_not_there_or_not_asked_for_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nlvr-dev\.tar is not there"):
        build.build("llava", tmp_path / "out", data=tmp_path)
    with pytest.raises(UserError, match="the recipe of lm learns from the embedded worlds alone; leave out --data"):
        build.build("lm", tmp_path / "out", data=tmp_path)
