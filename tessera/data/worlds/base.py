"""Worlds by name: the embedded ones, and a user's own files by path."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from tessera.data.source import World
from tessera.errors import UserError, nearest

# Name to "module:class"; a world's module is imported when it is opened.
EMBEDDED = {
    "scenes": "tessera.data.worlds.scenes.world:ScenesWorld",
    "emoji": "tessera.data.worlds.emoji:EmojiWorld",
    "tabletop": "tessera.data.worlds.tabletop.world:TabletopWorld",
}


def world_names() -> tuple[str, ...]:
    """The embedded worlds."""
    return tuple(EMBEDDED)


def _is_path(text: str) -> bool:
    """A separator, an extension, or something of that name on the disk.

    "scenes" stays the world even beside a folder called scenes (say ./scenes for the folder).
    """
    separators = [s for s in (os.sep, os.altsep, "/") if s]
    return any(s in text for s in separators) or bool(Path(text).suffix) or Path(text).exists()


def open_world(name_or_path: str | Path) -> World:
    """A world by its name, or a user's files by their path or brace pattern.

    Raises:
        UserError: no world has this name and it does not look like a path.
        DataError: the files cannot be read (see `tessera.data.readers`).
    """
    text = str(name_or_path)
    if isinstance(name_or_path, str) and text in EMBEDDED:
        module, _, builder = EMBEDDED[text].partition(":")
        return getattr(import_module(module), builder)()
    if isinstance(name_or_path, Path) or _is_path(text):
        from tessera.data.readers import open_reader  # only now: a reader may need optional packages

        return open_reader(name_or_path)
    raise UserError(f"there is no world or file called {text!r}{nearest(text, EMBEDDED)}")
