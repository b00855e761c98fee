"""Conversations in LLaVA's JSON: `[{"id": ..., "image": "a.jpg", "conversations": [{"from": "human", "value":
"<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}]`, or one such value a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera.data.quality import Tally
from tessera.data.readers.files import FileWorld, Record, read_json, read_json_lines
from tessera.data.sample import Image, Role, Sample, Text
from tessera.errors import BadSample, DataError
from tessera.files import sha256

_Item = tuple[list[str], list[Any]]  # paths of the pictures, turns

TAG = "<image>"
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def open_llava(path: str | Path, images: str | Path | None = None) -> FileWorld[_Item]:
    """A file of conversations. Picture paths are taken relative to `images`, by default the file's own
    folder.

    Raises:
        DataError: the file cannot be read, or holds no conversation.
    """
    file = Path(path)
    return llava_world(file, read_json_lines(file) if file.suffix == ".jsonl" else read_json(file), images)


def llava_world(file: Path, rows: Any, images: str | Path | None = None) -> FileWorld[_Item]:
    """As `open_llava`, from the value that the file holds."""
    folder = Path(images) if images else file.parent
    if not isinstance(rows, list):
        raise DataError(f"{file} is not a list of conversations")
    tally = Tally()
    records: list[Record[_Item]] = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
            tally.add("without conversations", f"entry {number}")
            continue
        name = f"{row.get('id', number)}"
        shown = _names(row)
        if shown is None:
            tally.add("whose image is no path or list of paths", f"entry {number}")
            continue
        # Conversations about one picture stay on one side of the split.
        records.append(Record(name, shown[0] if shown else name, (shown, row["conversations"])))

    def make(record: Record[_Item]) -> Sample:
        names, turns = record.item
        places = [folder / name for name in names]
        return Sample(conversation(turns, [(str(place), place) for place in places]), id=record.id)

    return FileWorld(str(file), "conversations", records, make, [sha256(file)], tally)


def _names(row: Mapping[str, Any]) -> list[str] | None:
    """The paths of a row's pictures, or None where what stands there are no paths."""
    value = row.get("image", row.get("images")) or []
    names = [value] if isinstance(value, str) else value
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def conversation(turns: Sequence[Any], images: Sequence[tuple[str, Any]]) -> tuple[Text | Image, ...]:
    """Turns of LLaVA's form as segments; each `<image>` becomes the next picture.

    Args:
        images: key and source of each picture, in order.

    Raises:
        BadSample: an unknown role, a turn without words or pictures, or another number of `<image>` tags than
            of pictures.
    """
    whole = [(_role(turn), _value(turn)) for turn in turns]
    tags = sum(value.count(TAG) for _, value in whole)
    if tags != len(images):
        raise BadSample(f"the conversation has {tags} {TAG} tags but {len(images)} pictures")
    waiting = iter(images)
    segments: list[Text | Image] = []
    for role, value in whole:
        learned = role == "assistant"
        before = len(segments)
        for number, piece in enumerate(value.split(TAG)):
            if number:
                key, source = next(waiting)
                segments.append(Image(source, learned=learned, key=key, role=role))
            if piece.strip():
                segments.append(Text(piece.strip(), learned=learned, role=role))
        if len(segments) == before:
            raise BadSample(f"the conversation has an empty turn of the {role}")
    return tuple(segments)


def _role(turn: Any) -> Role:
    role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    if role not in ROLES:
        raise BadSample(f"unknown role {role!r}; known are {', '.join(ROLES)}")
    return ROLES[role]


def _value(turn: Mapping[str, Any]) -> str:
    value = turn.get("value", turn.get("content"))
    if not isinstance(value, str):
        raise BadSample("a turn of the conversation has no text under 'value'")
    return value
