"""WebDataset shards: tar files whose members share a key, `KEY.png` with `KEY.txt` or `KEY.json`.

What the members mean is a `Layout`; it is found from the first sample:
- captions: `KEY.txt`, or JSON with `caption` or `text`;
- conversations: JSON with `conversations`, as LLaVA has them;
- questions: JSON with `question` and `answer`;
- statements: JSON with `sentence` and `label`, as NLVR has them: a statement about the picture, true or
false.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.data.images import SUFFIXES
from tessera.data.quality import Tally, allowed, check_text
from tessera.data.readers.files import FileWorld, Record
from tessera.data.readers.llava import conversation
from tessera.data.readers.tar_index import Shard, index_shard
from tessera.data.sample import Image, Sample, pair, question
from tessera.errors import BadSample, DataError

Group = Callable[[str], str]


@dataclass(frozen=True)
class Members:
    """One key of one shard, its members read only when asked for."""

    shard: Shard
    key: str

    @property
    def pictures(self) -> list[str]:
        """Extensions that are pictures, in alphabetical order."""
        return sorted(name for name in self.shard.members[self.key] if f".{name.rsplit('.', 1)[-1]}" in SUFFIXES)

    def has(self, extension: str) -> bool:
        """Whether there is a member of this extension."""
        return extension in self.shard.members[self.key]

    def image(self, extension: str) -> Image:
        """A picture, not yet read."""
        member = self.shard.member(self.key, extension)
        return Image(member, key=str(member))

    def text(self) -> str:
        """The member `.txt`."""
        return self.shard.member(self.key, "txt").read().decode("utf-8-sig", "replace").strip()

    def json(self) -> Mapping[str, Any]:
        """The member `.json`. Raises BadSample where it is not a JSON object."""
        try:
            value = json.loads(self.shard.member(self.key, "json").read())
        except ValueError:
            raise BadSample(f"{self.shard.path}: {self.key}.json is not valid JSON") from None
        if not isinstance(value, dict):
            raise BadSample(f"{self.shard.path}: {self.key}.json is not a JSON object")
        return value


@dataclass(frozen=True)
class Layout:
    """What the members of a key mean.

    `task` that it gives; `needs` is an extension that each sample must have beside a picture; `fields` are
    the names that its JSON has; `make` reads a sample; `group` names what must stay on one side of a split,
    from the key.
    """

    name: str
    task: str
    needs: str
    make: Callable[[Members], Sample]
    fields: tuple[str, ...] = ()
    group: Group = str

    def matches(self, members: Members) -> bool:
        """Whether a sample is laid out so."""
        if not members.has(self.needs):
            return False
        return not self.fields or set(self.fields) <= members.json().keys()


def _field(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise BadSample(f"the JSON has no text under {name!r}")
    return check_text(text).strip()


def _caption_text(members: Members) -> Sample:
    return pair(members.image(members.pictures[0]), check_text(members.text()))


def _caption_json(name: str) -> Callable[[Members], Sample]:
    return lambda members: pair(members.image(members.pictures[0]), _field(members.json(), name))


def _conversation(members: Members) -> Sample:
    turns = members.json().get("conversations")
    if not isinstance(turns, list):
        raise BadSample("the JSON has no list under 'conversations'")
    pictures = [members.image(extension) for extension in members.pictures]
    return Sample(conversation(turns, [(str(image.key), image.source) for image in pictures]))


def _question(members: Members) -> Sample:
    value = members.json()
    return question(members.image(members.pictures[0]), _field(value, "question"), _field(value, "answer"))


def _statement(members: Members) -> Sample:
    value = members.json()
    label = str(value.get("label")).lower()
    if label not in ("true", "false"):
        raise BadSample(f"the label is {value.get('label')!r}, not true or false")
    asked = f"Is this statement true or false? {_field(value, 'sentence')}"
    meta = {"sentence": value["sentence"], "label": label == "true", "identifier": value.get("identifier")}
    return question(members.image(members.pictures[0]), asked, label, meta=meta)


def without_last_number(key: str) -> str:
    """'1572-0-3' -> '1572-0': the six arrangements of one NLVR example share this."""
    return key.rsplit("-", 1)[0]


STATEMENTS = Layout("statements", "questions", "json", _statement, ("sentence", "label"), group=without_last_number)
LAYOUTS = (
    Layout("conversations", "conversations", "json", _conversation, ("conversations",)),
    Layout("questions", "questions", "json", _question, ("question", "answer")),
    STATEMENTS,
    Layout("captions", "pairs", "txt", _caption_text),
    Layout("captions", "pairs", "json", _caption_json("caption"), ("caption",)),
    Layout("captions", "pairs", "json", _caption_json("text"), ("text",)),
)


def open_shards(
    pattern: str | Path | Sequence[Path], *, layout: Layout | None = None, group: Group | None = None
) -> FileWorld[Members]:
    """Local shards by path, brace pattern such as `shards/{000..012}.tar`, or list of paths.

    Args:
        layout: what the members mean; by default found from the first sample.
        group: a name from a key; samples of one name stay on one side of the split. By default the layout's.

    Raises:
        DataError: a shard is missing or no tar file, none holds a usable sample, the layout is unknown, or
            more members are double or cut off than the share of bad samples allows.
    """
    paths = _expand(str(pattern)) if isinstance(pattern, str | Path) else list(pattern)
    text = str(pattern) if isinstance(pattern, str | Path) else f"{paths[0].parent}/*.tar"
    shards = [index_shard(path) for path in sorted(paths)]
    tally = Tally()
    every = [Members(shard, key) for shard in shards for key in shard.members]
    _spoiled(shards, len(every), tally)
    with_picture = [members for members in every if members.pictures]
    for members in every:
        if not members.pictures:
            tally.add("without a picture", f"{members.shard.path.name}:{members.key}")
    if not with_picture:
        raise DataError(f"{text} holds no picture: {tally}")
    layout = layout or _find_layout(with_picture)
    records = []
    for members in with_picture:
        name = members.key if len(shards) == 1 else f"{members.shard.path.stem}/{members.key}"
        if members.has(layout.needs):
            records.append(Record(name, (group or layout.group)(members.key), members))
        else:
            tally.add(f"without .{layout.needs}", name)
    stamps = [f"{shard.path.name} {json.dumps(shard.members, sort_keys=True)}" for shard in shards]
    return FileWorld(text, layout.task, records, _maker(layout), stamps, tally)


def _expand(pattern: str) -> list[Path]:
    from webdataset.shardlists import expand_urls

    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(f"{pattern}: shards are read from local files only; download them first")
    return [Path(path) for path in expand_urls(pattern)]


def _spoiled(shards: list[Shard], samples: int, tally: Tally) -> None:
    """Count what is cut off or double. Raises DataError past the allowed share."""
    for shard in shards:
        if shard.cut:
            tally.add("shard cut short, what lies before the cut is used", str(shard.path))
        for name in shard.doubles:
            tally.add("member met twice, the first is used", f"{shard.path}:{name}")
    limit = allowed(samples + len(tally), samples + len(tally))
    if len(tally) > limit:
        raise DataError(f"more is spoiled than the {limit} allowed of {samples} samples: {tally}")


def _find_layout(every: list[Members]) -> Layout:
    """The layout of the first sample that has one."""
    for members in every[:20]:
        for layout in LAYOUTS:
            with contextlib.suppress(BadSample):  # JSON that cannot be read: the next sample may tell
                if layout.matches(members):
                    return layout
    first = every[0]
    found = ", ".join(first.shard.members[first.key])
    raise DataError(
        f"{first.shard.path}: {first.key} has the members {found}, which fit no known layout; known are"
        " KEY.txt, or KEY.json with caption, text, conversations, question and answer, or sentence and label"
    )


def _maker(layout: Layout) -> Callable[[Record[Members]], Sample]:
    def make(record: Record[Members]) -> Sample:
        sample = layout.make(record.item)
        return Sample(sample.segments, id=record.id, meta=sample.meta)

    return make
