"""The official files of sentences about pictures, and tables of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tessera.data.answers import AnswerTable, count_answers, normal_answer
from tessera.data.readers.grounded import GroundedWorld
from tessera.errors import BadSample, DataError, UserError

PRETRAINING = [
    {
        "img_id": f"COCO_{number}",
        "sentf": {"mscoco": ["a dog runs", "a brown dog"], "vqa": ["what animal is it?"]},
        "labelf": {"vqa": [{"dog": 1.0, "puppy": 0.3}]},
    }
    for number in range(6)
]
VQA = [
    {"img_id": f"COCO_{number}", "question_id": number, "sent": "is it red?", "label": {"yes": 0.9}}
    for number in range(4)
]
NLVR2 = [
    {"identifier": f"dev-{number}-0", "img0": f"a{number}", "img1": f"b{number}", "label": number % 2, "sent": "Both."}
    for number in range(4)
]


def write(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_captions_questions_and_statements_come_from_their_files(tmp_path: Path) -> None:
    world = GroundedWorld(write(tmp_path, mscoco_minival=PRETRAINING, vqa=VQA, nlvr2=NLVR2))
    assert world.tasks == ("pairs", "questions", "statements")
    sizes = {task: sum(len(world.source(task, split)) for split in ("train", "heldout")) for task in world.tasks}
    assert sizes == {"pairs": 12, "questions": 10, "statements": 4}
    caption = world.source("pairs")[0]
    assert caption.text == "a dog runs" and caption.images[0].key == "COCO_0"
    asked = next(one for one in map(world.source("questions").__getitem__, range(5)) if "animal" in one.text)
    assert asked.meta["answers"] == {"dog": 1.0, "puppy": 0.3} and asked.text == "what animal is it? dog"
    pair = world.source("statements")[0]
    number = pair.images[0].key[1:]
    assert [image.key for image in pair.images] == [f"a{number}", f"b{number}"]
    assert pair.meta["label"] is bool(int(number) % 2)
    with pytest.raises(BadSample, match="known by the regions of a feature file alone"):
        caption.images[0].pil()


def test_sentences_of_one_picture_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    world = GroundedWorld(write(tmp_path, pretraining=PRETRAINING, vqa=VQA))
    sides = {
        split: {
            world.source(task, split)[i].images[0].key
            for task in world.tasks
            for i in range(len(world.source(task, split)))
        }
        for split in ("train", "heldout")
    }
    assert sides["train"] and sides["heldout"] and not sides["train"] & sides["heldout"]


@pytest.mark.parametrize(
    "table", [{"all_ans": [{"ans": "yes", "dsets": ["vqa"]}, {"ans": "no"}]}, {"trainval_label2ans": ["yes", "no"]}]
)
def test_a_folder_has_its_own_table_of_answers(table: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path, vqa=VQA, trainval_ans2label={"yes": 0, "no": 1}, **table)
    found = GroundedWorld(folder).table()
    assert found is not None and found.answers == ("yes", "no")
    assert GroundedWorld(write(tmp_path / "..", vqa=VQA)).table() is None


def test_spoilt_files_are_refused_and_spoilt_rows_are_named(tmp_path: Path) -> None:
    bad = {
        "none": ({}, "no .json file"), "object": ({"a": {"img_id": 1}}, "not a list of sentences"),
        "other": ({"a": [{"caption": "x"}, 3]}, "holds no usable sample"),
        "tables": ({"vqa": VQA, "all_ans": ["a", "b"], "x_label2ans": ["a"]}, "several tables"),
        "table": ({"vqa": VQA, "all_ans": [1, 2]}, "no list of answers"),
    }  # fmt: skip
    for name, (files, sentence) in bad.items():
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=sentence):
            GroundedWorld(write(tmp_path / name, **files)).table()
    rows = [*VQA, *({**VQA[0], **change} for change in ({"sent": ""}, {"label": ["yes"]}, {"sent": 4}))]
    source = GroundedWorld(write(tmp_path / "none", vqa=rows)).source("questions")
    sides = [source, GroundedWorld(tmp_path / "none").source("questions", "heldout")]
    refused = 0
    for side in sides:
        for place in range(len(side)):
            try:
                side[place]
            except BadSample:
                refused += 1
    assert refused == 3


def test_answers_are_spelt_as_the_official_table_does() -> None:
    spelt = {"A man.": "man", "the woman": "woman", "Two": "2", "grey": "gray", "an apple": "apple", "anthem": "anthem"}
    assert {given: normal_answer(given) for given in spelt} == spelt
    table = AnswerTable(["yes", "2", "left"])
    assert [table.place(one) for one in ("Yes.", "two", "right")] == [0, 1, None]
    assert table.places_in(AnswerTable(["left", "two"])) == [None, 1, 0]


def test_the_commonest_answers_make_the_table() -> None:
    assert count_answers(["yes", "no", "No", "two", "2", "2", "blue"], most=3).answers == ("2", "no", "blue")
    with pytest.raises(UserError, match="nothing to choose from"):
        count_answers(["yes", "Yes."], most=9)
    with pytest.raises(UserError, match="'a' twice"):
        AnswerTable(["a", "b", "a"])
