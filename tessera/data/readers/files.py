"""What all readers share: records listed once, split by a hash of their group, read one by one when asked
for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tessera.data.quality import Tally
from tessera.data.sample import Sample
from tessera.data.source import Split
from tessera.errors import DataError, UserError, nearest

HELD_OUT = 0.05

Item = TypeVar("Item")


@dataclass(frozen=True)
class Record(Generic[Item]):
    """One sample not yet read: its name, the group that must stay on one side of a split, and where it is."""

    id: str
    group: str
    item: Item


class RecordSource(Generic[Item]):
    """Records as a Source. `make` reads one; it may raise BadSample."""

    def __init__(
        self,
        name: str,
        records: Sequence[Record[Item]],
        make: Callable[[Record[Item]], Sample],
        fingerprint: str,
    ) -> None:
        self.name = name
        self.records = records
        self.make = make
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Sample:
        return self.make(self.records[index])

    def fingerprint(self) -> str:
        """A hash of the set's files, the split and the number of its samples."""
        return f"{self._fingerprint}-{len(self.records)}"


def _chance(group: str) -> float:
    """A number in [0, 1) that depends on the group's name alone."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "replace")).digest()[:8], "big") / 2**64


def held_out_groups(groups: set[str]) -> set[str]:
    """Five groups in a hundred, by a hash of their names, and at least one. A group keeps its side as a set
    grows, unless it was held out only because no other was."""
    chosen = {group for group in groups if _chance(group) < HELD_OUT}
    return chosen or {min(groups, key=_chance)}


class FileWorld(Generic[Item]):
    """A user's files as a World of one task, split by groups.

    Args:
        name: what messages call it.
        task: pairs, questions or conversations.
        records: everything that can be read.
        make: reads one record.
        stamps: what identifies the files: names, sizes, hashes.
        tally: what was left out while listing.
        held: groups of the held-out split; by default some by a hash of their names.

    Raises:
        DataError: no record, with the count of what was left out and why.
    """

    def __init__(
        self,
        name: str,
        task: str,
        records: Sequence[Record[Item]],
        make: Callable[[Record[Item]], Sample],
        stamps: Sequence[str],
        tally: Tally,
        held: Set[str] | None = None,
    ) -> None:
        if not records:
            raise DataError(f"{name} holds no usable sample: {tally}")
        tally.log(name, len(records))
        self.name = name
        self.tasks: tuple[str, ...] = (task,)
        self.tally = tally
        self._make = make
        self._hash = hashlib.sha256("\n".join(stamps).encode("utf-8", "replace")).hexdigest()[:16]
        held = held_out_groups({record.group for record in records}) if held is None else held
        self._records: dict[Split, list[Record[Item]]] = {
            "train": [record for record in records if record.group not in held],
            "heldout": [record for record in records if record.group in held],
        }

    def source(self, task: str, split: Split = "train") -> RecordSource[Item]:
        """The samples of one split.

        Raises:
            UserError: a task that these files do not give.
            DataError: everything is held out, because all samples are one group.
        """
        if task not in self.tasks:
            raise UserError(f"{self.name} has no task {task!r}{nearest(task, self.tasks)}")
        records = self._records[split]
        if not records:
            raise DataError(f"{self.name} is one group of samples and cannot be split; add more")
        return RecordSource(f"{self.name} {split}", records, self._make, f"{self._hash}-{split}")

    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and texts."""
        return self._hash


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: it cannot be read or is not JSON, with the place.
    """
    return _parse(_read_text(path), path)


def read_json_lines(path: Path) -> list[Any]:
    """The values in a file with one JSON value a line; empty lines are passed over.

    Raises:
        DataError: as `read_json`.
    """
    lines = enumerate(_read_text(path).split("\n"), start=1)
    return [_parse(line, path, number) for number, line in lines if line.strip()]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def _parse(text: str, path: Path, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path} is not valid JSON: line {line}, column {error.colno}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets nested thousands deep
        raise DataError(f"{path} holds JSON that is too deep or has a number that is too long") from None
