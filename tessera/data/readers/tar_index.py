"""Where each member of a tar shard lies, found by reading its headers once, so that samples can be read by
number."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera.errors import DataError, UserError
from tessera.files import write_text

Span = tuple[int, int]  # first byte, number of bytes


@dataclass
class Shard:
    """One tar file: for each key its members by extension, in the file's order; members met twice; whether
    the file ends before its last member does."""

    path: Path
    members: dict[str, dict[str, Span]] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)
    cut: bool = False

    def read(self, key: str, extension: str) -> bytes:
        """The bytes of one member."""
        start, size = self.members[key][extension]
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(size)


def index_shard(path: Path) -> Shard:
    """The index of a shard; kept in the user's cache folder for as long as the file does not change.

    Raises:
        DataError: it is not an uncompressed tar file.
    """
    try:
        state = path.stat()
    except OSError:
        raise DataError(f"{path}: no such shard") from None
    mark = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(root) / "tessera" / "shards" / f"{hashlib.sha256(mark.encode()).hexdigest()[:32]}.json"
    try:
        return _from_json(path, json.loads(cache.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        shard = _scan(path, state.st_size)
    try:
        text = json.dumps({"members": shard.members, "doubles": shard.doubles, "cut": shard.cut})
        write_text(cache, text)
    except (OSError, UserError):  # a read-only or full disk: the index is made again next time
        pass
    return shard


def _from_json(path: Path, value: Any) -> Shard:
    members = {
        key: {extension: (int(start), int(size)) for extension, (start, size) in spans.items()}
        for key, spans in value["members"].items()
    }
    return Shard(path, members, list(value["doubles"]), bool(value["cut"]))


def _scan(path: Path, size: int) -> Shard:
    from webdataset.tariterators import base_plus_ext

    shard = Shard(path)
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                key, extension = base_plus_ext(member.name)
                if member.offset_data + member.size > size:
                    shard.cut = True
                    break
                if not key or member.name.startswith("__"):
                    continue
                spans = shard.members.setdefault(key, {})
                if extension.lower() in spans:
                    shard.doubles.append(member.name)
                else:
                    spans[extension.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError):
        if not shard.members:
            raise DataError(
                f"{path} is not an uncompressed tar file, or is cut before its first member"
            ) from None
        shard.cut = True
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    return shard
