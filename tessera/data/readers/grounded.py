"""Sentences about pictures that are known by their regions alone: the JSON files of the official LXMERT.

- pre-training: `[{"img_id", "sentf": {SET: [sentence, ...]}, "labelf": {SET: [{answer: score}, ...]}}]`; sentences of a
  set with labels are questions, those of others captions;
- questions (VQA, GQA): `[{"img_id", "sent", "label": {answer: score}}]`;
- statements about two pictures (NLVR2): `[{"img0", "img1", "sent", "label": 0 or 1}]`;
- tables of answers: `all_ans.json`, `[{"ans": answer}, ...]`, or a list of answers, `*label2ans.json`.

The regions themselves are read by `tessera.data.readers.detections`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tessera.data.answers import AnswerTable
from tessera.data.quality import Tally, check_text
from tessera.data.readers.files import FileWorld, Record, RecordSource, read_json
from tessera.data.sample import Image, Sample, Text, pair, question
from tessera.data.source import Split
from tessera.errors import BadSample, DataError, UserError, nearest
from tessera.files import sha256

TASKS = ("pairs", "questions", "statements")
TABLES = "*ans*.json"
_Item = Mapping[str, Any]


class GroundedWorld:
    """The sentences of a folder's JSON files; `tasks` are those that it has: captions as pairs, questions, statements.

    A question's scores are `meta["answers"]`, a statement's truth is `meta["label"]`; the key of a picture is its
    img_id. Pictures have no pixels.

    Raises:
        DataError: no JSON file, a file of another kind, or nothing usable.
    """

    def __init__(self, folder: str | Path) -> None:
        self.name, self._folder = str(folder), Path(folder)
        files = sorted(set(self._folder.glob("*.json")) - set(self._folder.glob(TABLES)))
        if not files:
            raise DataError(f"{folder} has no .json file of sentences")
        records: dict[str, list[Record[_Item]]] = {task: [] for task in TASKS}
        tally = Tally()
        for file in files:
            for task, record in _records(file, tally):
                records[task].append(record)
        stamps = [f"{file.name} {sha256(file)}" for file in files]
        self._worlds = {
            task: FileWorld(self.name, task, found, _MAKERS[task], stamps, tally)
            for task, found in records.items() if found
        }  # fmt: skip
        if not self._worlds:
            raise DataError(f"{folder} holds no usable sample: {tally}")
        self.tasks = tuple(self._worlds)

    def source(self, task: str, split: Split = "train") -> RecordSource[_Item]:
        """The samples of one task.

        Raises:
            UserError: a task that these files do not give.
        """
        if task not in self._worlds:
            raise UserError(f"{self.name} has no task {task!r}{nearest(task, self.tasks)}")
        return self._worlds[task].source(task, split)

    def table(self) -> AnswerTable | None:
        """The folder's own table of answers; None where it has none.

        Raises:
            DataError: more than one, or one that is none.
        """
        files = sorted(file for file in self._folder.glob(TABLES) if "ans2label" not in file.name)
        if not files:
            return None
        if len(files) > 1:
            raise DataError(
                f"{self.name} has several tables of answers ({', '.join(f.name for f in files)}); leave one"
            )
        rows = read_json(files[0])
        answers: list[Any] = []
        if isinstance(rows, list):
            answers = [row.get("ans") if isinstance(row, dict) else row for row in rows]
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise DataError(f"{files[0]} is no list of answers")
        return AnswerTable(answers)


def _records(file: Path, tally: Tally) -> Iterator[tuple[str, Record[_Item]]]:
    """The samples of a file, each with its task."""
    rows = read_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file} is not a list of sentences about pictures")
    for number, row in enumerate(rows):
        name = f"{file.stem}/{number}"
        if not isinstance(row, dict):
            tally.add("that is no object", name)
        elif {"img0", "img1", "sent", "label"} <= row.keys():
            yield "statements", Record(name, str(row.get("identifier", name)).rsplit("-", 1)[0], row)
        elif {"img_id", "sentf"} <= row.keys():
            yield from _pretraining(row, name, tally)
        elif {"img_id", "sent", "label"} <= row.keys():
            yield "questions", Record(name, str(row["img_id"]), row)
        else:
            tally.add("without img_id and sentf, img_id, sent and label, or img0, img1, sent and label", name)


def _pretraining(row: _Item, name: str, tally: Tally) -> Iterator[tuple[str, Record[_Item]]]:
    """Every sentence of one picture's entry."""
    sets, labels = row["sentf"], row.get("labelf") or {}
    if not isinstance(sets, dict) or not isinstance(labels, dict):
        tally.add("whose sentf or labelf is no object", name)
        return
    for kind, sentences in sets.items():
        scores = labels.get(kind)
        if not isinstance(sentences, list) or (scores is not None and len(scores) != len(sentences)):
            tally.add("with other numbers of sentences and labels", f"{name}/{kind}")
            continue
        for place, sentence in enumerate(sentences):
            item: _Item = {
                "img_id": row["img_id"],
                "sent": sentence,
                "label": scores[place] if scores is not None else None,
            }
            record = Record(f"{name}/{kind}/{place}", str(row["img_id"]), item)
            yield ("pairs" if scores is None else "questions"), record


def _picture(name: Any) -> Image:
    def pixels() -> Any:
        raise BadSample(f"picture {name!r} is known by the regions of a feature file alone, not by its pixels")

    return Image(pixels, key=str(name))


def _sentence(item: _Item) -> str:
    if not isinstance(item["sent"], str):
        raise BadSample("the sentence is no text")
    return check_text(item["sent"]).strip()


def _caption(record: Record[_Item]) -> Sample:
    return pair(_picture(record.item["img_id"]), _sentence(record.item), id=record.id)


def _question(record: Record[_Item]) -> Sample:
    scores = record.item["label"]
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        raise BadSample("the label is no object of answers and scores")
    best = max(scores, key=lambda answer: scores[answer], default="")
    meta = {"answers": dict(scores)}
    return question(_picture(record.item["img_id"]), _sentence(record.item), best, id=record.id, meta=meta)


def _statement(record: Record[_Item]) -> Sample:
    item = record.item
    if item["label"] not in (0, 1):
        raise BadSample(f"the label is {item['label']!r}, not 0 or 1")
    truth = bool(item["label"])
    pictures = tuple(Image(one.source, False, one.key, "user") for one in map(_picture, (item["img0"], item["img1"])))
    words = Text(_sentence(item), learned=False, role="user"), Text(str(truth).lower(), role="assistant")
    return Sample((*pictures, *words), id=record.id, meta={"label": truth})


_MAKERS = {"pairs": _caption, "questions": _question, "statements": _statement}
