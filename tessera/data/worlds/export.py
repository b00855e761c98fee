"""A source as WebDataset shards or a LeRobot data set, in the layouts that `tessera.data.readers` reads back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Protocol, runtime_checkable

from tessera.data.episodes import Episode, Robot
from tessera.data.lerobot import write_lerobot
from tessera.data.sample import Image, Sample, Segment, Text
from tessera.data.source import Source
from tessera.errors import BadSample, UserError
from tessera.files import atomic_folder

_SPEAKER = {"user": "human", "assistant": "gpt", "system": "system"}


def _png(image: Image) -> bytes:
    held = io.BytesIO()
    image.pil().save(held, format="PNG")
    return held.getvalue()


def _speaker(segment: Segment) -> str:
    role = getattr(segment, "role", None) or ("assistant" if segment.learned else "user")
    return _SPEAKER[role]


def _conversation(sample: Sample) -> str:
    """The words in LLaVA's form, `<image>` where a picture stands."""
    turns = []
    for speaker, segments in groupby(sample.segments, _speaker):
        parts = [one.text if isinstance(one, Text) else "<image>" for one in segments]
        turns.append({"from": speaker, "value": "\n".join(parts)})
    return json.dumps({"id": sample.id, "conversations": turns}, ensure_ascii=False)


def members(sample: Sample) -> dict[str, bytes]:
    """A sample as shard members: extension -> content.

    A picture and a text become `png` and `txt`; a question `png` and JSON with question and answer; anything
    else numbered pictures and JSON with conversations.

    Raises:
        UserError: the sample has segments that are neither words nor pictures.
        BadSample: a picture cannot be decoded.
    """
    for segment in sample.segments:
        if not isinstance(segment, Text | Image):
            kind = type(segment).__name__
            raise UserError(f"shards hold words and pictures; {sample.id!r} has a segment of kind {kind}")
    pictures = [_png(image) for image in sample.images]
    texts = [segment.text for segment in sample.segments if isinstance(segment, Text)]
    kinds = [type(segment) for segment in sample.segments]
    if kinds == [Image, Text]:
        return {"png": pictures[0], "txt": texts[0].encode()}
    if kinds == [Image, Text, Text] and [one.learned for one in sample.segments] == [False, False, True]:
        asked = json.dumps({"question": texts[0], "answer": texts[1]}, ensure_ascii=False)
        return {"png": pictures[0], "json": asked.encode()}
    numbered = {f"{place:03d}.png": picture for place, picture in enumerate(pictures)}
    return {**numbered, "json": _conversation(sample).encode()}


def write_shards(
    source: Source, out: str | Path, *, count: int | None = None, size: int = 1000
) -> tuple[int, int, int]:
    """Write the first `count` samples of `source` (default all) to `out`/00000.tar and on, `size` in each.

    The same source gives the same bytes. Samples that cannot be used are left out.

    Returns:
        The numbers of shards, of samples written and of samples left out.

    Raises:
        UserError: `out` holds something already, the disk is full, or a sample is not of words and pictures.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already; choose another --out")
    total = len(source) if count is None else min(count, len(source))
    shards = skipped = 0
    with atomic_folder(out) as folder:
        for start in range(0, total, size):
            with tarfile.open(folder / f"{shards:05d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
                for index in range(start, min(start + size, total)):
                    try:
                        _add(tar, f"{index:08d}", members(source[index]))
                    except BadSample:
                        skipped += 1
            shards += 1
    return shards, total - skipped, skipped


@runtime_checkable
class Acted(Protocol):
    """A source that was acted, and so knows its episodes and who acted."""

    robot: Robot

    def episodes(self, count: int) -> Iterator[Episode]:
        """The first `count` episodes, without those that cannot be used."""
        ...


def write_episodes(source: Source, out: str | Path, *, count: int | None = None) -> tuple[int, int, int]:
    """Write the first `count` episodes of `source` (default all) as the LeRobot data set `out`.

    Returns:
        The numbers of episodes and frames written, and of episodes left out.

    Raises:
        UserError: `out` holds something already, the disk is full, or `source` is of a user's own files.
        DataError: there is no episode.
    """
    if not isinstance(source, Acted):
        raise UserError(f"{source.name} is a LeRobot data set already; copy its folder")
    total = len(source) if count is None else min(count, len(source))
    written, frames = write_lerobot(source.episodes(total), out, source.robot)
    return written, frames, total - written


def _add(tar: tarfile.TarFile, key: str, content: dict[str, bytes]) -> None:
    for extension, data in sorted(content.items()):
        entry = tarfile.TarInfo(f"{key}.{extension}")  # its time is 0: the same samples give the same bytes
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
