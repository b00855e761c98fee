"""Where each member of a tar shard lies, found by reading its headers once, so that samples can be read by
number."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image as PIL

from tessera.data.images import MAX_BYTES, open_image
from tessera.errors import DataError, UserError
from tessera.files import write_text

Span = tuple[int, int]  # first byte, number of bytes


@lru_cache(maxsize=32)
def _held(path: Path) -> io.FileIO:
    """The file, which stays open: to open it for each sample takes longer than to read one."""
    return open(path, "rb", buffering=0)


def _bytes(path: Path, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start` on, or fewer where it ends. Threads may read at once."""
    if not hasattr(os, "pread"):  # Windows
        with open(path, "rb") as opened:
            opened.seek(start)
            return opened.read(size)
    file = _held(path)
    found = os.pread(file.fileno(), size, start)
    while len(found) < size and (more := os.pread(file.fileno(), size - len(found), start + len(found))):
        found += more  # a file system may give less than it was asked for
    return found


@dataclass(frozen=True)
class Member:
    """The bytes of one file in a tar file, read when asked for."""

    path: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        """All of it."""
        return self._first(self.size)

    def __call__(self) -> PIL.Image:
        """It as an RGB picture. Raises BadSample as `open_image` does."""
        return open_image(self._first(MAX_BYTES + 1), name=str(self))

    def _first(self, limit: int) -> bytes:
        return _bytes(self.path, self.start, min(self.size, limit))

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


@dataclass
class Shard:
    """One tar file: for each key its members by extension, in the file's order; members met twice; whether
    the file ends before its last member does."""

    path: Path
    members: dict[str, dict[str, Span]] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)
    cut: bool = False

    def member(self, key: str, extension: str) -> Member:
        """One member, not yet read."""
        start, size = self.members[key][extension]
        return Member(self.path, f"{key}.{extension}", start, size)


def index_shard(path: Path) -> Shard:
    """The index of a shard; kept in the user's cache folder for as long as the file does not change.

    Raises:
        DataError: it is not an uncompressed tar file.
    """
    try:
        state = path.stat()
    except OSError:
        raise DataError(f"{path}: no such shard") from None
    _held.cache_clear()  # what is open may be another file that had this name
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
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + (-member.size % 512 + member.size if member.isfile() else 0)
                if end > size:
                    break
                key, extension = base_plus_ext(member.name)
                if not member.isfile() or not key or member.name.startswith("__"):
                    continue
                spans = shard.members.setdefault(key, {})
                if extension.lower() in spans:
                    shard.doubles.append(member.name)
                else:
                    spans[extension.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError):
        if not shard.members:
            raise DataError(f"{path} is not an uncompressed tar file, or is cut in its first member") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    # A whole tar file ends in zero blocks; tarfile itself passes over their absence.
    with open(path, "rb") as file:
        file.seek(end)
        shard.cut = file.read(512) != bytes(512)
    if shard.cut and not shard.members:
        raise DataError(f"{path} is cut short in its first member; fetch it again")
    return shard
