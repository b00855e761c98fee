"""Files that are either whole or absent: written aside, flushed, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tessera.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def _means_full(error: Exception) -> bool:
    """Whether the disk is full; writers in Rust (weights, tokenizers) say so with errors of their own."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into a sentence."""
    try:
        yield
    except Exception as error:
        if not _means_full(error):
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"the disk is full: writing {path} stopped with {free / 2**20:.1f} MiB free;"
            " make room or choose another --out; what was saved before is whole"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success flush it and rename it to `path`, else remove it.

    A folder already at `path` is replaced only after the new one is complete.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.writing-", dir=path.parent))
    try:
        with _telling(path):
            yield aside
            for file in sorted(aside.rglob("*")):
                if file.is_file():
                    _flush(file)
            aside.chmod(0o755)
            old = path.with_name(f".{path.name}.old")
            if old.exists():
                shutil.rmtree(old)
            if path.exists():
                path.rename(old)
            aside.rename(path)
            _flush(path.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success flush that file and rename it to `path`, else remove it.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        with _telling(path):
            yield aside
            _flush(aside)
            aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def check_file(path: str | Path) -> Path:
    """`path`, before the work is done whose result goes there.

    Raises:
        UserError: a folder is there, or what should be a folder above it is none or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, such as one in it")
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir():
        raise UserError(f"{path} cannot be written, since {above} is no folder; choose another path")
    if not os.access(above, os.W_OK):
        raise UserError(f"{path} cannot be written, since {above} may only be read; choose another path")
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        UserError: the disk is full.
    """
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of `value` as indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(value: Any) -> str:
    """Twelve hexadecimal digits of a JSON value's SHA-256.

    Raises:
        UserError: the value is not JSON.
    """
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"a configuration must be plain JSON values to have a hash: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:12]
